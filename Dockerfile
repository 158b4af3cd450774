# Two targets: `service` (API, control worker, migration; holds no torch) and `worker` (pipeline; CPU or GPU).
#
#   docker build --target service -t atomscope-service .
#   docker build --target worker  -t atomscope-worker  .
#
# PIP_TORCH_ARGS is passed to pip when it installs torch, such as `--index-url URL` of an index with the build
# that you want. Everything else comes from the locks in requirements/.

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# ---------------------------------------------------------------- the wheel
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY requirements/build.txt requirements/build.txt
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --no-deps -r requirements/build.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY sdk sdk
COPY workers workers
COPY service service
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

# ------------------------------------------------------------- environments
FROM ${PYTHON_IMAGE} AS service-environment
WORKDIR /src
COPY requirements/service.txt requirements/service.txt
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps -r requirements/service.txt \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE} AS worker-environment
ARG PIP_TORCH_ARGS=""
WORKDIR /src
COPY requirements/workers.txt requirements/torch.txt requirements/
COPY --from=wheel /wheels /wheels
# PIP_TORCH_ARGS is meant to be split.
# hadolint ignore=SC2086
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps -r requirements/workers.txt \
    && /opt/venv/bin/pip install --no-cache-dir ${PIP_TORCH_ARGS} -r requirements/torch.txt \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

# ------------------------------------------------------------------- images
FROM ${PYTHON_IMAGE} AS base
RUN groupadd --gid 10001 atomscope \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin atomscope
# The root file system may be read-only: only /tmp is written to.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["atomscope"]

FROM base AS service
COPY --from=service-environment /opt/venv /opt/venv
ENV ATOMSCOPE_HOST=0.0.0.0 \
    ATOMSCOPE_PORT=8321
EXPOSE 8321
# Of the API; run `control` and `migrate` with --no-healthcheck.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['ATOMSCOPE_PORT'] + '/livez', timeout=4)"]
CMD ["api"]

FROM base AS worker
COPY --from=worker-environment /opt/venv /opt/venv
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, redis; redis.Redis.from_url(os.environ['ATOMSCOPE_BROKER_URL'], socket_timeout=5).ping()"]
CMD ["worker"]
