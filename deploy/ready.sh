#!/bin/bash
# Can this server answer? Exit 0 when it can, 1 with the reason when it cannot.
#
#   ready.sh                    it speaks HTTP, whatever is loaded
#   ready.sh bank               GetModelStatus of bank has a version that is AVAILABLE
#   ready.sh bank:stable sms    the same for each, and the version that bank's label `stable` points to answers
#
# An httpGet probe cannot ask this: GetModelStatus over REST is 200 also while every version is still LOADING or has failed. The image has
# no gRPC client and no curl, but it has bash, which opens TCP connections itself. PORT is the REST port (8501).
port=${PORT:-8501}

# Asks for a path; the status line and the body go to stdout. Cut off after 3 s: a server that does not answer is not ready.
get() {
  { printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$1" >&3 && timeout 3 cat <&3; } 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$port"
}

# Outside /v1: what lies there is not counted among the requests.
answer=$(get /)
if [[ $answer != HTTP/1.* ]]; then
  echo "127.0.0.1:$port: no answer; TensorFlow Serving opens its ports when the configured models are loaded"
  exit 1
fi
for wanted in "$@"; do
  model=${wanted%%:*} label=
  if [[ $wanted == *:* ]]; then
    label=${wanted#*:}
  fi
  if [[ $(get "/v1/models/$model") != *'"AVAILABLE"'* ]]; then
    echo "$model: no version is AVAILABLE"
    exit 1
  fi
  # The status API ignores labels. The metadata API does not, and answers only for a version that is loaded.
  if [[ -n $label && $(get "/v1/models/$model/labels/$label/metadata") != HTTP/1.?\ 200\ * ]]; then
    echo "$model: label $label points to no version that answers"
    exit 1
  fi
done
