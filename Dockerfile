# Trivec's image. CPU by default; for NVIDIA GPUs:
#   docker build --build-arg TENSORFLOW='tensorflow[and-cuda]' -t trivec:gpu .
#   docker run --gpus all -p 8000:8000 -v trivec-data:/data -v trivec-weights:/weights trivec:gpu
FROM python:3.11-slim-bookworm

ARG TENSORFLOW=tensorflow-cpu
# Extras of pyproject.toml, e.g. `--build-arg EXTRAS=otel` for traces (docs/observability.md).
ARG EXTRAS=
WORKDIR /opt/trivec

# Dependencies first: they change less often than the code. tensorflow-cpu is the same code as
# tensorflow in half the space, so the name is exchanged here and the rest is pyproject.toml's list.
COPY pyproject.toml constraints.txt ./
RUN python -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = [project['optional-dependencies'][one] for one in os.environ.get('EXTRAS', '').split(',') if one]; \
        print('\n'.join(sum(extras, project['dependencies'])))" \
      | sed "s/^tensorflow\([<>=]\)/${TENSORFLOW}\1/" > requirements.txt \
    && pip install --no-cache-dir -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY app app
COPY model model
COPY weights weights
RUN pip install --no-cache-dir --no-deps . \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin trivec \
    && mkdir -p /data /weights && chown trivec:trivec /data /weights

USER trivec
WORKDIR /home/trivec
ENV TRIVEC_HOST=0.0.0.0 TRIVEC_PORT=8000 TRIVEC_DATA_DIR=/data TRIVEC_CACHE_DIR=/weights TRIVEC_CONVERTED_DIR=/weights/converted \
    NUMBA_CACHE_DIR=/weights/kernels PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
VOLUME ["/data", "/weights"]
EXPOSE 8000
# A large checkpoint takes its time to download and load: only then does failing count.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['TRIVEC_PORT']}/health/ready\", timeout=4)"]
CMD ["trivec", "serve"]
