#!/bin/sh
# Runs the handler in the first argument, on Lambda directly, elsewhere behind the emulator.
if [ $# -ne 1 ]; then
  echo "entrypoint requires the handler name to be the first argument" >&2
  exit 142
fi
export _HANDLER="$1"
if [ -n "$AWS_LAMBDA_RUNTIME_API" ]; then
  exec "$LAMBDA_RUNTIME_DIR/bootstrap"
fi
exec /usr/local/bin/aws-lambda-rie "$LAMBDA_RUNTIME_DIR/bootstrap"
