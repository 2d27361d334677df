#!/bin/sh
# Starts TensorFlow Serving in a container: the flags that compose.yaml and k8s/deployment.yaml share. More flags may follow as arguments.
#
# The config that the last push left comes first: it names the versions and labels that were in service. Before the first push there is
# none, and the server runs without a model. Labels of versions that are not loaded yet have to be allowed, because at start none is.
models=${MODELS:-/models}
config=${CONFIG:-/config}
file=$config/models.config
if [ -s "$models/models.config" ]; then
  file=$models/models.config
fi
exec tensorflow_model_server \
  --port=8500 \
  --rest_api_port=8501 \
  --model_config_file="$file" \
  --allow_version_labels_for_unavailable_models=true \
  --file_system_poll_wait_seconds=1 \
  --max_num_load_retries=0 \
  --enable_batching=true \
  --batching_parameters_file="$config/batching.config" \
  --monitoring_config_file="$config/monitoring.config" \
  "$@"
