# The target `docs`: the reference of the public headers, in <build>/docs/html. A public symbol without
# documentation is an error, here and in the test `reference_is_complete`.
find_package(Doxygen QUIET)
if(NOT DOXYGEN_FOUND)
  return()
endif()

set(DOXYGEN_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/docs")
set(DOXYGEN_USE_MDFILE_AS_MAINPAGE "${CMAKE_CURRENT_SOURCE_DIR}/docs/architecture.md")
set(DOXYGEN_STRIP_FROM_INC_PATH "${CMAKE_CURRENT_SOURCE_DIR}/include")
set(DOXYGEN_EXCLUDE_PATTERNS "*/detail/*" "*/impl/*")
set(DOXYGEN_EXCLUDE_SYMBOLS "torchlore::detail" "torchlore::*::detail")
set(DOXYGEN_JAVADOC_AUTOBRIEF YES)  # the first sentence is the summary
set(DOXYGEN_HIDE_UNDOC_RELATIONS YES)
set(DOXYGEN_MACRO_EXPANSION YES)
set(DOXYGEN_HAVE_DOT NO)
set(DOXYGEN_WARN_IF_INCOMPLETE_DOC NO)  # a parameter whose name says all needs no line of its own
set(DOXYGEN_INPUT_FILTER "sed -e '/= default;/d;/&&) noexcept;/d'")  # nor does a defaulted or plain move
set(DOXYGEN_QUIET YES)
set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)
doxygen_add_docs(docs include docs/architecture.md)

if(TORCHLORE_BUILD_TESTS)
  add_test(NAME reference_is_complete COMMAND ${CMAKE_COMMAND} --build ${CMAKE_BINARY_DIR} --target docs)
  set_tests_properties(reference_is_complete PROPERTIES LABELS rules RUN_SERIAL TRUE)
endif()
