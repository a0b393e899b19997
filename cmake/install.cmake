# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` gives other projects (docs/library.md): the floors up to kv in one archive
# with the headers of their public surface, and the C interface as a shared library.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# Of base only what these floors use: logs, files and JSON would bring their libraries along.
set(base_objects "$<FILTER:$<TARGET_OBJECTS:kvrm_base>,INCLUDE,/check.cc|/sha256.cc>")
add_library(kvrm_package STATIC ${base_objects} $<TARGET_OBJECTS:kvrm_step>
  $<TARGET_OBJECTS:kvrm_device> $<TARGET_OBJECTS:kvrm_kv>)
set_target_properties(kvrm_package PROPERTIES OUTPUT_NAME kvrm EXPORT_NAME kv LINKER_LANGUAGE CXX)
target_link_libraries(kvrm_package INTERFACE OpenSSL::Crypto Threads::Threads)
target_compile_features(kvrm_package INTERFACE cxx_std_20)
target_compile_definitions(kvrm_package INTERFACE KVRM_INSTALLED)
target_include_directories(kvrm_package INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/kvrm>)

get_target_property(capi_sources kvrm_capi SOURCES)
add_library(kvrm_c SHARED ${capi_sources})
target_link_libraries(kvrm_c PRIVATE kvrm_options kvrm_package)
target_compile_definitions(kvrm_c PRIVATE KVRM_BUILDS_LIBRARY)
target_link_options(kvrm_c PRIVATE -Wl,--exclude-libs,ALL -Wl,--no-undefined)
target_include_directories(kvrm_c INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
set_target_properties(kvrm_c PROPERTIES EXPORT_NAME c CXX_VISIBILITY_PRESET hidden
  VISIBILITY_INLINES_HIDDEN ON VERSION ${PROJECT_VERSION} SOVERSION 1)

# The public surface; what these include is in the list as well.
foreach(header base/check.h base/result.h step/ids.h step/dtype.h step/layout.h step/step.h
    step/step_builder.h step/prefix_key.h device/device.h device/host_device.h kv/kv_cache.h)
  get_filename_component(folder ${header} DIRECTORY)
  install(FILES src/${header} COMPONENT library
    DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/kvrm/${folder})
endforeach()
install(FILES src/capi/kvrm.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/kvrm COMPONENT library)
install(TARGETS kvrm_package kvrm_c EXPORT kvrmTargets
  ARCHIVE COMPONENT library LIBRARY COMPONENT library NAMELINK_COMPONENT library)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/kvrm)
install(EXPORT kvrmTargets NAMESPACE kvrm:: DESTINATION ${package_dir} COMPONENT library)
configure_package_config_file(cmake/kvrmConfig.cmake.in ${CMAKE_BINARY_DIR}/kvrmConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/kvrmConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/kvrmConfig.cmake ${CMAKE_BINARY_DIR}/kvrmConfigVersion.cmake
  DESTINATION ${package_dir} COMPONENT library)
if(TARGET kvrm)
  install(TARGETS kvrm RUNTIME COMPONENT program)
endif()
