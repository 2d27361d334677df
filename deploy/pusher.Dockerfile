# An image to push from (k8s/pusher.yaml): the gRPC client and `python -m serving push`, without TensorFlow.
#   docker build -f deploy/pusher.Dockerfile -t registry.example.com/tfpipeline-pusher:1 .
FROM python:3.12-slim
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY tfpipeline tfpipeline
COPY serving serving
RUN pip install --no-cache-dir .
COPY --chmod=755 deploy/pods.sh /usr/local/bin/pods
WORKDIR /
USER 65534
