# The container image for Lambda: one runtime's packages, one model, serving/, lambda_function.py.
#
#   docker build -t flowers .                                      Python 3.11, tflite-runtime
#   docker build -t flowers --build-arg RUNTIME=ai-edge-litert .   Python 3.13, ai-edge-litert
#   docker build -t flowers --build-arg RUNTIME=openvino .         Python 3.13, OpenVINO
#   docker build -t flowers --build-arg MODELS=models/demo .       the best model in another folder
#
# To push it to AWS, add --provenance=false --platform linux/amd64: Lambda accepts no multi-platform
# images.

# Names both a stage below and a Pipfile category.
ARG RUNTIME=tflite-runtime

FROM public.ecr.aws/lambda/python:3.11 AS tflite-runtime
FROM public.ecr.aws/lambda/python:3.13 AS ai-edge-litert
FROM public.ecr.aws/lambda/python:3.13 AS openvino

FROM ${RUNTIME} AS build
ARG RUNTIME
WORKDIR /build

COPY Pipfile Pipfile.lock ./
# pipenv only reads the lock here, which also pins pipenv's version.
RUN version=$(python3 -c "import json; print(json.load(open('Pipfile.lock'))['develop']['pipenv']['version'])") \
    && python3 -m pip install --no-cache-dir --root-user-action=ignore \
        --target /opt/pipenv "pipenv$version"
# The lock lists all dependencies, hence --no-deps. Tests, type stubs and NumPy's build tools are
# removed. Byte code is never checked against its source, because Lambda's file system is read-only.
RUN PYTHONPATH=/opt/pipenv python3 -m pipenv requirements \
        --categories "$RUNTIME" --hash --exclude-index > requirements.txt \
    && python3 -m pip install --no-cache-dir --root-user-action=ignore --no-compile \
        --require-hashes --no-deps --only-binary=:all: --target packages -r requirements.txt \
    && find packages -type d -name tests -prune -exec rm -rf {} + \
    && find packages -name "*.pyi" -delete \
    && rm -rf packages/numpy/f2py packages/numpy/distutils \
    && python3 -m compileall -q --invalidation-mode unchecked-hash packages
# Nearly half of OpenVINO supports other processors and other model formats.
RUN cd packages && rm -rf openvino/tools openvino/include openvino/libs/cache.json \
        openvino/libs/*_gpu_* openvino/libs/*_npu_* openvino/libs/*_onnx_* \
        openvino/libs/*_pytorch_* openvino/libs/*_paddle_* openvino/libs/*_gguf_* \
        openvino/libs/*_jax_* openvino/libs/*_tensorflow_frontend*

COPY lambda_function.py code/
COPY serving code/serving
RUN python3 -m compileall -q --invalidation-mode unchecked-hash code

ARG MODELS=models
COPY models found/models/
RUN cd found && PYTHONPATH=../code python3 -m serving.image_build pick "$MODELS"
# Lambda runs the image as an unknown user, so all users may read.
RUN chmod -R a+rX code models

FROM ${RUNTIME}
COPY --from=build /build/packages ${LAMBDA_TASK_ROOT}/
COPY --from=build /build/models ${LAMBDA_TASK_ROOT}/models/
COPY --from=build /build/code ${LAMBDA_TASK_ROOT}/
# A model that this runtime cannot run fails the build, not the first request.
RUN python3 -m serving.image_build run
# Elsewhere than on Lambda, requests wait for each other.
ENTRYPOINT ["/bin/sh", "/var/task/serving/entrypoint.sh"]
CMD ["lambda_function.lambda_handler"]
