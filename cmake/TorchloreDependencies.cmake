# What torchlore stands on. Included by the build, and by the installed package's config.

# GLOBAL: otherwise a project that adds torchlore by add_subdirectory cannot see LibTorch's targets.
if(NOT TARGET torch)
  find_package(Torch 2.9 REQUIRED GLOBAL)
endif()
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(Eigen3 3.4 REQUIRED NO_MODULE)
if(PROJECT_NAME STREQUAL "torchlore")  # of the build only: the package's users need no JSON
  find_package(nlohmann_json 3.11 REQUIRED)
endif()

# LibTorch ships its own fmt headers but no fmt symbols, and they shadow any other fmt: use them
# header-only. Where LibTorch ships none, take the system's.
if(NOT TARGET torchlore_fmt)
  add_library(torchlore_fmt INTERFACE)
  add_library(torchlore::fmt ALIAS torchlore_fmt)
  set_target_properties(torchlore_fmt PROPERTIES EXPORT_NAME fmt)
  find_path(TORCHLORE_TORCH_FMT fmt/format.h PATHS ${TORCH_INCLUDE_DIRS} NO_DEFAULT_PATH NO_CACHE)
  if(TORCHLORE_TORCH_FMT)
    target_compile_definitions(torchlore_fmt INTERFACE FMT_HEADER_ONLY=1)
  else()
    find_package(fmt REQUIRED)
    target_link_libraries(torchlore_fmt INTERFACE fmt::fmt-header-only)
  endif()
endif()
