# Stand-ins for images that cannot be pulled, on the root that debootstrap made.
ARG ROOT=python:3.11.14-slim-bookworm

# NVIDIA's server out of the wheel nvidia-pytriton, with the backend `onnxruntime` in Python, laid as in the official
# image.
FROM ${ROOT} AS triton
COPY tritonserver /opt/tritonserver
COPY site-packages /usr/local/lib/python3.11/dist-packages
ENV PATH=/opt/tritonserver/bin:$PATH \
    LD_LIBRARY_PATH=/opt/tritonserver/lib \
    ORT_DISABLE_TELEMETRY=1

FROM triton AS sdk
COPY perf_analyzer /usr/local/bin/

FROM ${ROOT} AS prometheus
COPY prometheus /bin/
RUN install --directory --owner 65534 --group 65534 /prometheus
USER 65534
ENTRYPOINT ["/bin/prometheus"]
