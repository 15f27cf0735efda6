# The container image for Lambda: one runtime's packages, one model, serving/, lambda_function.py.
#
#   docker build -t flowers .                                      Python 3.11, tflite-runtime
#   docker build -t flowers --build-arg RUNTIME=ai-edge-litert .   Python 3.13, ai-edge-litert
#   docker build -t flowers --build-arg RUNTIME=openvino .         Python 3.13, OpenVINO
#   docker build -t flowers --build-arg MODELS=models/demo .       the best model in another folder
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
# Tests, type stubs and NumPy's build tools are removed; Pillow's fonts, colour profiles and all
# formats that serving/image.py does not read; and nearly half of OpenVINO, which supports other
# processors and other model formats. Byte code is never checked against its source, because
# Lambda's file system is read-only.
RUN cd packages && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . -name "*.pyi" -delete \
    && rm -rf numpy/f2py numpy/distutils \
    && find PIL -name "*Plugin.py" ! -name "Avif*" ! -name "Bmp*" ! -name "Gif*" ! -name "Jpeg?m*" \
        ! -name "Mpo*" ! -name "Png*" ! -name "Tiff*" ! -name "WebP*" -delete \
    && rm -rf PIL/_imagingcms.* PIL/_imagingft.* PIL/_imagingmorph.* PIL/_imagingtk.* \
        pillow.libs/libbrotli* pillow.libs/libfreetype* pillow.libs/libharfbuzz* \
        pillow.libs/liblcms2* pillow.libs/libpng* \
    && rm -rf openvino/tools openvino/include openvino/libs/cache.json \
        openvino/libs/*_gpu_* openvino/libs/*_npu_* openvino/libs/*_onnx_* \
        openvino/libs/*_pytorch_* openvino/libs/*_paddle_* openvino/libs/*_gguf_* \
        openvino/libs/*_jax_* openvino/libs/*_tensorflow_frontend* \
    && python3 -m compileall -q --invalidation-mode unchecked-hash .

COPY lambda_function.py code/
COPY serving code/serving
RUN python3 -m compileall -q --invalidation-mode unchecked-hash code

ARG MODELS=models
COPY models found/models/
RUN cd found && PYTHONPATH=../code python3 -m serving.image_build pick "$MODELS"
# Lambda runs the image as an unknown user, so all users may read.
RUN chmod -R a+rX code models

FROM ${BASE}
COPY --from=build /build/packages ${LAMBDA_TASK_ROOT}/
COPY --from=build /build/models ${LAMBDA_TASK_ROOT}/models/
COPY --from=build /build/code ${LAMBDA_TASK_ROOT}/
# A model that this runtime cannot run fails the build, not the first request.
RUN python3 -m serving.image_build run
# Elsewhere than on Lambda, requests wait for each other.
ENTRYPOINT ["/bin/sh", "/var/task/serving/entrypoint.sh"]
CMD ["lambda_function.lambda_handler"]
