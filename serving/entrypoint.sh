#!/bin/sh
# Starts the handler in the first argument: on Lambda, and behind an emulator that has set up the
# runtime API itself, as the base image does; elsewhere behind the base image's emulator, with HTTP
# and a queue in front of it.
if [ -n "$AWS_LAMBDA_RUNTIME_API" ] || [ $# -ne 1 ]; then
  exec /lambda-entrypoint.sh "$@"
fi
export _HANDLER="$1"
exec python3 -I "$LAMBDA_TASK_ROOT/serving/emulator_queue.py" 8080 \
  /usr/local/bin/aws-lambda-rie "${LAMBDA_RUNTIME_DIR:-/var/runtime}/bootstrap"
