# Runs in the service `bench`: perf_analyzer against Triton's ensemble over gRPC, and the gateway over HTTP.
set -eu
measure() {
    echo "== $1"
    shift
    perf_analyzer -m "$MODEL" --concurrency-range "$CONCURRENCY" --measurement-interval "$INTERVAL_MS" \
        --percentile=95 "$@"
}
measure "Triton's ensemble, gRPC" -u triton:8001 -i grpc
measure "the gateway, HTTP" -u gateway:8000 -i http
