# How torchlore's own targets are compiled.

set(TORCHLORE_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wconversion)

# Warnings, sanitizers and C++20 for any target of this project.
function(torchlore_configure_target target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_compile_options(${target} PRIVATE ${TORCHLORE_WARNINGS} $<$<BOOL:${TORCHLORE_WERROR}>:-Werror>)
  if(TORCHLORE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=address,undefined -fno-omit-frame-pointer
                                             -fno-sanitize-recover=undefined
                                             # g++ 12 guesses wrong about instrumented optionals
                                             -Wno-maybe-uninitialized)
    target_link_options(${target} PRIVATE -fsanitize=address,undefined)
  endif()
endfunction()

function(torchlore_configure_library target)
  torchlore_configure_target(${target})
  target_include_directories(${target} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  # OpenMP is public: at::parallel_for in a user's code is silently serial without it.
  target_link_libraries(${target} PUBLIC torch Eigen3::Eigen torchlore::openmp torchlore::fmt)
  target_link_libraries(${target} PRIVATE OpenSSL::Crypto)
  # Headers only, and only inside: neither the package nor its users meet it.
  target_include_directories(${target} SYSTEM PRIVATE
    $<TARGET_PROPERTY:nlohmann_json::nlohmann_json,INTERFACE_INCLUDE_DIRECTORIES>)
  set_target_properties(${target} PROPERTIES
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR} POSITION_INDEPENDENT_CODE ON)
endfunction()

# Compiles one kernel file once per instruction set; the choice is made at run time. Sets that few files
# have a use for (avx512bf16) are named behind it. The kernel file
# uses no templates of the standard library, so nothing compiled for AVX-512 leaks into other code.
function(torchlore_add_kernels target kernel)
  cmake_path(GET kernel STEM name)
  set(flags_portable "")
  set(flags_avx2 -mavx2 -mfma -mf16c)
  set(flags_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512)
  set(flags_avx512bf16 ${flags_avx512} -mavx512bf16)
  set(levels portable)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
    list(APPEND levels avx2 avx512 ${ARGN})
    target_compile_definitions(${target} PRIVATE TORCHLORE_X86_KERNELS=1)
  endif()
  foreach(level IN LISTS levels)
    set(file "${CMAKE_CURRENT_BINARY_DIR}/kernels/${name}_${level}.cpp")
    file(CONFIGURE OUTPUT "${file}" CONTENT
      "#define TORCHLORE_KERNEL_LEVEL ${level}\n#include \"${CMAKE_CURRENT_SOURCE_DIR}/${kernel}\"\n")
    set_source_files_properties("${file}" PROPERTIES COMPILE_OPTIONS
      "-O3;-fno-math-errno;-Wno-psabi;${flags_${level}}")  # psabi: no vector crosses a call between files
    target_sources(${target} PRIVATE "${file}")
  endforeach()
endfunction()

# target_precompile_headers where TORCHLORE_PRECOMPILE asks for it: half the time of a test or claim. With
# REUSE_FROM the other target must have the same compile options.
function(torchlore_precompile target)
  if(TORCHLORE_PRECOMPILE)
    target_precompile_headers(${target} ${ARGN})
  endif()
endfunction()

# Compiles faster than -O3.
function(torchlore_optimize_less target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
endfunction()

# One test program of GoogleTest cases.
function(torchlore_add_test name)
  add_executable(${name} ${ARGN})
  torchlore_configure_target(${name})
  torchlore_optimize_less(${name})
  torchlore_precompile(${name} REUSE_FROM torchlore_test_main)
  target_link_libraries(${name} PRIVATE torchlore_test_main torchlore::torchlore GTest::gtest)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  if(TORCHLORE_SANITIZE)  # tests of running out of memory ask for more than there is
    set_tests_properties(${name} PROPERTIES ENVIRONMENT ASAN_OPTIONS=allocator_may_return_null=1)
  endif()
endfunction()
