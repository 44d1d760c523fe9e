# The image of every Outrider process, and of Ray's own:  docker build -t outrider:0.1.0 .
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu    torch for CPUs: an image of 2 GB instead of 8
# A compiler is in the final image on purpose: the CPU kernels (workers/kernels) and torch's own compiler build for the
# machine that they run on, at the first start, and keep the result in /cache.

ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=""
WORKDIR /opt/outrider
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md ./
COPY client ./client
# Dependencies first: a change of the sources below leaves this layer as it is.
RUN for part in cluster scheduler workers; do mkdir $part && touch $part/__init__.py; done \
    && /opt/venv/bin/pip install --no-cache-dir --no-compile --disable-pip-version-check \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt -e client -e '.[kubernetes]'
COPY cluster ./cluster
COPY scheduler ./scheduler
COPY workers ./workers
RUN /opt/venv/bin/python -m compileall -q /opt/outrider /opt/venv

FROM python:${PYTHON}
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home outrider \
    && mkdir /cache && chown outrider /cache
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/outrider /opt/outrider
# Some releases of KubeRay run Ray in a login shell, which sets PATH anew and finds commands here.
RUN ln -s /opt/venv/bin/ray /opt/venv/bin/outriderd /opt/venv/bin/outrider /usr/local/bin/
# USER and LOGNAME: torch's compiler asks for a name, also where the platform assigned a user id without one.
ENV PATH=/opt/venv/bin:$PATH \
    OUTRIDER_CACHE=/cache \
    USER=outrider \
    LOGNAME=outrider \
    PYTHONDONTWRITEBYTECODE=1
USER 1000
WORKDIR /home/outrider
EXPOSE 50051
CMD ["outriderd", "up", "--listen", "0.0.0.0:50051"]
