# Leave llama.cpp's library "common" out: only its own programs and its image decoder need it, and it is half of the build.
set(LLAMA_BUILD_COMMON OFF)
