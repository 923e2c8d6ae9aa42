"""Values for the chart: every toggle, and every source."""

import functools
from typing import Any

from tests.cluster.chart import Rendered, render

MUTUAL = {"secret": "tls", "clientAuthorities": {"secret": "clients"}, "probeSecret": "probe"}
PARENTS = [{"name": "public", "namespace": "gateways"}]
TRITON_SCALES = {
    "triton": {
        "enabled": True,
        "autoscaling": {"enabled": True, "kind": "keda", "metric": "queue"},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {}}]},
    }
}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "openvino": {"engine": "openvino", "replicas": 3, "image": {"repository": "r/x", "digest": "sha256:12"}},
    "settings": {
        "settings": {
            "max_body_bytes": 33554432,
            "cors_origins": ["https://a.example", "https://b.example"],
            "gpus": [0, 1],
            "access_log": False,
        },
        "env": [{"name": "COSERVE_TRITON_TOKEN", "valueFrom": {"secretKeyRef": {"name": "t", "key": "k"}}}],
    },
    "volume": {
        "repository": {
            "source": "volume",
            "folder": "models/",
            "volume": {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
        }
    },
    "image volume": {"repository": {"folder": "models", "image": {"mode": "mount"}}},
    "s3": {
        "repository": {"source": "bucket", "sizeLimit": "2Gi", "bucket": {"url": "s3://b/x", "secret": "s3"}}
    },
    "gcs": {"repository": {"source": "bucket", "bucket": {"url": "gs://b/x"}}},
    "azure": {
        "repository": {
            "source": "bucket",
            "bucket": {
                "url": "azure://c/x",
                "env": {"RCLONE_AZUREBLOB_ACCOUNT": "a", "RCLONE_S3_PROVIDER": "Minio"},
            },
        }
    },
    "keys": {"auth": {"apiKeys": {"secret": "keys"}}},
    "tls": {"tls": {"secret": "tls"}, "grpc": {"enabled": True}},
    "mutual tls": {"tls": MUTUAL, "auth": {"apiKeys": {"secret": "keys"}}},
    "public": {
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "auth": {"allowAnonymous": True},
    },
    "grpc": {"grpc": {"enabled": True, "port": 9000}, "service": {"port": 80}},
    "route": {
        "auth": {"apiKeys": {"secret": "keys"}},
        "httpRoute": {
            "enabled": True,
            "parentRefs": PARENTS,
            "hostnames": ["images.example"],
            "weight": 90,
            "canary": {"service": "next-coserve", "weight": 10},
            "rule": {"timeouts": {"request": "15s"}},
        },
    },
    "cpu": {"autoscaling": {"enabled": True, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}}},
    "queue": {"autoscaling": {"enabled": True, "metric": "queue"}},
    "requests": {"autoscaling": {"enabled": True, "metric": "requests"}},
    "keda requests": {
        "autoscaling": {"enabled": True, "kind": "keda", "metric": "requests"},
        "prometheus": {"address": "http://prometheus:9090"},
    },
    "keda cpu": {"autoscaling": {"enabled": True, "kind": "keda", "behavior": {"scaleDown": {}}}},
    "keda queue": {
        "autoscaling": {"enabled": True, "kind": "keda", "metric": "queue"},
        "prometheus": {"address": "http://prometheus:9090"},
    },
    "monitor": {"serviceMonitor": {"enabled": True, "labels": {"release": "p"}}},
    "monitor with keys": {
        "auth": {"apiKeys": {"secret": "keys"}},
        "tls": {"secret": "tls"},
        "serviceMonitor": {"enabled": True, "apiKey": {"secret": "key"}, "tlsConfig": {"serverName": "x"}},
    },
    "triton": {"triton": {"enabled": True}},
    "triton with gpus": {
        "triton": {
            "enabled": True,
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "maxSurge": 0,
            "maxUnavailable": 1,
            "args": ["--log-verbose=1"],
            "env": [{"name": "CUDA_VISIBLE_DEVICES", "value": "0"}],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]},
            "autoscaling": {"enabled": True},
        },
        "repository": {"source": "bucket", "bucket": {"url": "s3://b"}},
        "serviceMonitor": {"enabled": True},
    },
    "triton scales": TRITON_SCALES | {"prometheus": {"address": "http://prometheus:9090"}},
    "triton elsewhere": {"triton": {"url": "a:8001,b:8001"}},
    "pods": {
        "podLabels": {"team": "x"},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "volumes": [{"name": "cache", "emptyDir": {}}],
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccount": {"create": False, "name": "models"},
        "topologySpread": [],
        "podDisruptionBudget": {"enabled": False},
    },
    "names": {"fullnameOverride": "x" * 80, "nameOverride": "n" * 62 + ".x", "triton": {"enabled": True}},
}


@functools.cache
def rendered() -> dict[str, Rendered]:
    return dict(zip(CASES, render(*CASES.values()), strict=True))
