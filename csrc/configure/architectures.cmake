# Owns: the list of CUDA architectures: the forms and names of TORCH_CUDA_ARCH_LIST, as torch extensions take them, and
# what an nvcc knows of them.
# Must not know: where nvcc is, what devices there are.

# Images run on devices of the same major version with an equal or higher minor one, and no Tegra chip shares them with
# others; code of "+PTX" is compiled by the driver for every later device. So 80 serves 8.6 and 8.9, 100 serves 10.3,
# its PTX serves 11.0 and what comes, 120 serves 12.1. Orin, 8.7, is a Tegra chip: it gets an image of its own where the
# processor can be an Orin's.
function(default_architectures out processor)
  set(orin)
  if(processor MATCHES "aarch64|arm64")
    set(orin 87)
  endif()
  set(${out} 75 80 ${orin} 90 100+PTX 120 PARENT_SCOPE)
endfunction()

# Numbers such as "80" or "90a+PTX" for "8.0", "80", "9.0a+PTX" and the names of generations.
function(parse_architectures out)
  set(generation_Kepler 3.5+PTX)
  set(generation_Kepler+Tesla 3.7)
  set(generation_Maxwell 5.0 5.2+PTX)
  set(generation_Maxwell+Tegra 5.3)
  set(generation_Pascal 6.0 6.1+PTX)
  set(generation_Volta 7.0+PTX)
  set(generation_Volta+Tegra 7.2)
  set(generation_Turing 7.5+PTX)
  set(generation_Ampere 8.0 8.6+PTX)
  set(generation_Ampere+Tegra 8.7)
  set(generation_Ada 8.9+PTX)
  set(generation_Hopper 9.0+PTX)
  set(generation_Blackwell 10.0 10.3 12.0 12.1+PTX)
  set(generation_Blackwell+Tegra 11.0)
  set(found)
  foreach(word IN LISTS ARGN)
    if(DEFINED generation_${word})
      parse_architectures(named ${generation_${word}})
      list(APPEND found ${named})
    elseif(word MATCHES "^([0-9]+)[.]?([0-9][af]?)([+]PTX)?$")
      list(APPEND found ${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3})
    else()
      message(FATAL_ERROR
        "CUDA architecture '${word}': must be a number such as 9.0, 90, 9.0a or 9.0+PTX, a generation of Kepler, "
        "Maxwell, Pascal, Volta, Turing, Ampere, Ada, Hopper and Blackwell "
        "(Ampere+Tegra and the like for Tegra chips), or, alone, native")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES found)
  set(${out} "${found}" PARENT_SCOPE)
endfunction()

function(architecture_number out architecture)
  string(REGEX MATCH "^[0-9]+" number "${architecture}")
  set(${out} "${number}" PARENT_SCOPE)
endfunction()

# The architectures of `listed` that are in `known`, and in `lacking` those that are not.
function(split_architectures out lacking listed known)
  set(kept)
  set(lost)
  foreach(architecture IN LISTS listed)
    architecture_number(number ${architecture})
    if(number IN_LIST known)
      list(APPEND kept ${architecture})
    else()
      list(APPEND lost ${architecture})
    endif()
  endforeach()
  set(${out} "${kept}" PARENT_SCOPE)
  set(${lacking} "${lost}" PARENT_SCOPE)
endfunction()

# Code of the highest that the driver can compile for later devices.
function(with_ptx_of_the_highest out)
  list(SORT ARGN COMPARE NATURAL)
  list(POP_BACK ARGN highest)
  string(REPLACE "+PTX" "" highest "${highest}")
  set(${out} ${ARGN} ${highest}+PTX PARENT_SCOPE)
endfunction()

# For each device the highest architecture that nvcc knows and the device can run, at least by way of PTX.
function(native_architectures out devices known)
  list(SORT known COMPARE NATURAL ORDER DESCENDING)
  set(found)
  parse_architectures(numbers ${devices})
  foreach(device IN LISTS numbers)
    foreach(number IN LISTS known)
      if(number LESS_EQUAL device)
        list(APPEND found ${number})
        break()
      endif()
    endforeach()
  endforeach()
  list(REMOVE_DUPLICATES found)
  set(${out} "${found}" PARENT_SCOPE)
endfunction()

function(gencode_flags out)
  set(flags)
  foreach(architecture IN LISTS ARGN)
    string(REGEX REPLACE "[+]PTX$" "" number "${architecture}")
    list(APPEND flags -gencode=arch=compute_${number},code=sm_${number})
    if(architecture MATCHES "PTX$")
      list(APPEND flags -gencode=arch=compute_${number},code=compute_${number})
    endif()
  endforeach()
  list(REMOVE_DUPLICATES flags)
  set(${out} "${flags}" PARENT_SCOPE)
endfunction()
