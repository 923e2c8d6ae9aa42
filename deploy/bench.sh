# Runs in the service `bench`: perf_analyzer against Triton's ensemble over gRPC, and the gateway over HTTP.
set -u
status=0
measure() {
    echo "== $1"
    shift
    perf_analyzer -m "$MODEL" --concurrency-range "$CONCURRENCY" --measurement-interval "$INTERVAL_MS" \
        --stability-percentage "$STABILITY" --input-data zero --percentile=95 "$@" || status=$?
}
measure "Triton's ensemble, gRPC" -u triton:8001 -i grpc
measure "the gateway, HTTP" -u gateway:8000 -i http
exit $status
