# A model repository as an image, for the Helm chart: docker build -f deploy/models.Dockerfile -t coserve-models:0.1.0 model_repository
FROM busybox:1.37
COPY . /models
USER 10001:10001
