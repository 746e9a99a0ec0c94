# Prometheus and Alertmanager from Debian's packages, in the places of the official images; see compose.offline.yaml.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS prometheus
RUN apt-get update \
    && apt-get install --yes --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner 65534 --group 65534 /prometheus
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus"]


FROM ${BASE} AS alertmanager
RUN apt-get update \
    && apt-get install --yes --no-install-recommends prometheus-alertmanager \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner 65534 --group 65534 /alertmanager
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus-alertmanager"]
