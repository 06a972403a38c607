# syntax=docker/dockerfile:1
# Not built where it was written, which has no Docker: tests check that what it copies is there and that the locked
# packages are those of pyproject.toml; docker-compose.yml's commands are started by a test without containers.
FROM python:3.12.8-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/store
WORKDIR /src
COPY requirements/platform.txt requirements/platform.txt
RUN /opt/store/bin/pip install --require-hashes --requirement requirements/platform.txt
COPY pyproject.toml README.md LICENSE ./
COPY ingest ingest
COPY tds_dagster tds_dagster
RUN /opt/store/bin/pip install hatchling==1.27.0 && /opt/store/bin/pip install --no-deps --no-build-isolation .

FROM python:3.12.8-slim-bookworm
# The folder exists with its owner before a volume is mounted there, and so the volume is that user's.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin store && install -d -o store -g store -m 0700 /data
COPY --from=build /opt/store /opt/store
ENV PATH=/opt/store/bin:$PATH TDS_DATA_DIR=/data PYTHONUNBUFFERED=1
USER store
WORKDIR /data
VOLUME /data
CMD ["tds", "up", "--host", "0.0.0.0"]
