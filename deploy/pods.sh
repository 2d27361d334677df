#!/bin/sh
# A command of `python -m serving` for every pod: each has to be told by its own address, because each has its own models and labels.
#
#   pods push /incoming/bank        pods status        pods promote bank        pods rollback bank
#
# SERVICE is the headless Service with the addresses, PORT the gRPC port, MODELS the root of the models as the pods see it too.
service=${SERVICE:-serving-push}
port=${PORT:-8500}
if [ $# -eq 0 ]; then
  echo "pods: expected a command of python -m serving: push, promote, rollback or status." >&2
  exit 2
fi
addresses=$(getent ahosts "$service" | awk '{print $1}' | sort -u)
if [ -z "$addresses" ]; then
  echo "pods: $service has no address: no pod runs, or this pod is in another namespace. Ask: kubectl -n serving get endpointslices" >&2
  exit 4
fi
for address in $addresses; do
  case $address in
    *:*) address="[$address]" ;;
  esac
  set -- "$@" --target "$address:$port"
done
exec python -m serving "$@" --models "${MODELS:-/models}"
