# Consumers compile as strictly as torchlore itself, so that its headers and options never make a user's
# build warn.
add_compile_options(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror)
enable_testing()
