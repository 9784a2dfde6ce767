# The installed package: `find_package(torchlore)` gives torchlore::torchlore.
include(CMakePackageConfigHelpers)
set(torchlore_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/torchlore")

install(TARGETS torchlore EXPORT torchlore)
install(DIRECTORY include/ DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT torchlore NAMESPACE torchlore:: FILE torchloreTargets.cmake
        DESTINATION "${torchlore_package_dir}")

configure_package_config_file(cmake/torchloreConfig.cmake.in torchloreConfig.cmake
                              INSTALL_DESTINATION "${torchlore_package_dir}")
# Before 1.0 a new minor version may change the interface.
write_basic_package_version_file(torchloreConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/torchloreConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/torchloreConfigVersion.cmake"
              cmake/TorchloreDependencies.cmake cmake/TorchloreFindTorch.cmake
        DESTINATION "${torchlore_package_dir}")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/torchlore")
