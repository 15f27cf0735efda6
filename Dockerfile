# The container image for Lambda: one runtime's packages, one model, serving/, lambda_function.py.
#
#   docker build -t flowers .                                      Python 3.11, tflite-runtime
#   docker build -t flowers --build-arg RUNTIME=ai-edge-litert .   Python 3.13, ai-edge-litert
#   docker build -t flowers --build-arg RUNTIME=openvino .         Python 3.13, OpenVINO
#   docker build -t flowers --build-arg MODELS=models/demo .       the best model in another folder
#   docker build -t flowers --build-arg MODEL=a.int8.tflite .      this file of the folder
#   docker build -t flowers --build-arg BASE=IMAGE@sha256:... .    on exactly this base image
#
# To push it to AWS, add --provenance=false --platform linux/amd64: Lambda accepts no multi-platform
# images.

# Names both a stage below and a Pipfile category.
ARG RUNTIME=tflite-runtime
# Instead of the runtime's stage below, the same image by its digest: see docs/serving.md.
ARG BASE=${RUNTIME}

FROM public.ecr.aws/lambda/python:3.11 AS tflite-runtime
FROM public.ecr.aws/lambda/python:3.13 AS ai-edge-litert
FROM public.ecr.aws/lambda/python:3.13 AS openvino

FROM ${BASE} AS build
ARG RUNTIME
WORKDIR /build

COPY Pipfile.lock tools/requirements.py ./
# The lock lists all dependencies, hence --no-deps.
RUN python3 requirements.py "$RUNTIME" < Pipfile.lock > requirements.txt \
    && python3 -m pip install --no-cache-dir --root-user-action=ignore --no-compile \
        --require-hashes --no-deps --only-binary=:all: --target packages -r requirements.txt
# Tests, type stubs and what NumPy has for compilers are removed; Pillow's fonts, colour profiles and
# all formats that serving/image.py does not read; a third of LiteRT and nearly half of OpenVINO,
# which support other processors, other languages and other formats of models.
RUN cd packages && find . -type d \( -name tests -o -name testing \) -prune -exec rm -rf {} + \
    && find . \( -name "*.pyi" -o -name "*.pxd" -o -name "*.[ach]" \) -delete \
    && rm -rf numpy/f2py numpy/distutils numpy/*core/_simd.* \
    && find PIL -name "*Plugin.py" ! -name "Avif*" ! -name "Bmp*" ! -name "Gif*" ! -name "Jpeg?m*" \
        ! -name "Mpo*" ! -name "Png*" ! -name "Tiff*" ! -name "WebP*" -delete \
    && rm -rf PIL/_imagingcms.* PIL/_imagingft.* PIL/_imagingmorph.* PIL/_imagingtk.* \
        pillow.libs/libbrotli* pillow.libs/libfreetype* pillow.libs/libharfbuzz* \
        pillow.libs/liblcms2* pillow.libs/libpng* \
    && rm -rf ai_edge_litert/libLiteRtWebGpuAccelerator.so ai_edge_litert/aot \
        ai_edge_litert/schema_py_generated.py ai_edge_litert/tflite ai_edge_litert/tools \
        ai_edge_litert/vendors \
    && rm -rf openvino/cmake openvino/tools openvino/include openvino/torch openvino/frontend/*/ \
        openvino/libs/cache.json openvino/libs/*_auto_* openvino/libs/*_hetero_* \
        openvino/libs/libopenvino_c.* openvino/libs/*_gpu_* openvino/libs/*_npu_* \
        openvino/libs/*_onnx_* openvino/libs/*_pytorch_* openvino/libs/*_paddle_* \
        openvino/libs/*_gguf_* openvino/libs/*_jax_* openvino/libs/*_tensorflow_frontend*
# NumPy 2 imports these where they are used, and nothing here uses them.
RUN [ "$RUNTIME" = tflite-runtime ] \
    || rm -rf packages/numpy/fft packages/numpy/polynomial packages/numpy/random
# Of the packages, byte code is enough. It is never checked against its source, because Lambda's
# file system is read-only.
RUN python3 -m compileall -q -b --invalidation-mode unchecked-hash packages \
    && find packages -name "*.py" -delete

COPY lambda_function.py code/
COPY serving code/serving
RUN python3 -m compileall -q --invalidation-mode unchecked-hash code

ARG MODELS=models
# Among the kinds of one checkpoint the newest is picked, but Docker's cache takes no notice of times:
# with a name, what was built from the same files with another one is not used again.
ARG MODEL=
COPY models found/models/
RUN cd found && PYTHONPATH=../code python3 -m serving.image_build pick "$MODELS" "$MODEL"
RUN cd code && PYTHONPATH=../packages python3 -m serving.image_build export ../models
# Lambda runs the image as an unknown user, so all users may read.
RUN chmod -R a+rX code models

FROM ${BASE}
COPY --from=build /build/packages ${LAMBDA_TASK_ROOT}/
COPY --from=build /build/models ${LAMBDA_TASK_ROOT}/models/
COPY --from=build /build/code ${LAMBDA_TASK_ROOT}/
# A model that this runtime cannot run fails the build, not the first request.
RUN python3 -m serving.image_build run
# Otherwise importing NumPy starts threads for products of matrices, which nothing here computes.
ENV OPENBLAS_NUM_THREADS=1
# Elsewhere than on Lambda, requests wait for each other.
ENTRYPOINT ["/bin/sh", "/var/task/serving/entrypoint.sh"]
CMD ["lambda_function.lambda_handler"]
