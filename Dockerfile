# docker build -t jetssl .
# docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD":/work jetssl --help
#
# The base is a plain Python, for GPUs too: PyTorch's packages bring their CUDA libraries along, and
# the host its driver. An image of CUDA is wanted only to compile flash-attn (the CUDA of the two
# images has to be that of PyTorch, and their system the same):
# docker build -t jetssl:flash --build-arg FLASH=1 \
#     --build-arg BUILDER=nvidia/cuda:13.0.1-devel-ubuntu24.04 \
#     --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#
# BASE         image of the result
# BUILDER      image in which everything is installed, with the same system
# TORCH_INDEX  package index of another build of PyTorch (a CPU's, or of another CUDA)
# EXTRAS       extras of jetssl: onnx, workflow, subjets, simulate (the last two are GPL)
# FLASH        1: compile flash-attn
ARG BASE=python:3.11-slim
ARG BUILDER=${BASE}

FROM ${BUILDER} AS builder
ARG TORCH_INDEX=
ARG EXTRAS=
ARG FLASH=
RUN command -v python3 || (apt-get update && \
    apt-get install --yes --no-install-recommends python3-dev python3-venv)
COPY pyproject.toml constraints.txt README.md CHANGELOG.md LICENSE /src/
COPY jetssl_cli /src/jetssl_cli
COPY configs /src/configs
COPY data_recipes /src/data_recipes
COPY workflow /src/workflow
RUN python3 -m venv /opt/jetssl
RUN /opt/jetssl/bin/python -m pip install --no-cache-dir --constraint /src/constraints.txt \
    ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
RUN /opt/jetssl/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /src/dist /src
RUN /opt/jetssl/bin/python -m pip install --no-cache-dir --constraint /src/constraints.txt \
    "$(echo /src/dist/jetssl-*.whl)${EXTRAS:+[${EXTRAS}]}"
RUN test -z "${FLASH}" || (/opt/jetssl/bin/python -m pip install --no-cache-dir \
    ninja packaging psutil setuptools wheel && \
    /opt/jetssl/bin/python -m pip install --no-cache-dir --constraint /src/constraints.txt \
    --no-build-isolation "$(echo /src/dist/jetssl-*.whl)[flash]")

FROM ${BASE}
RUN command -v python3 || (apt-get update && \
    apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*)
RUN (getent passwd 1000 || useradd --uid 1000 jetssl) && install --directory --owner 1000 /work
COPY --from=builder /opt/jetssl /opt/jetssl
ENV PATH=/opt/jetssl/bin:${PATH} MPLCONFIGDIR=/tmp/matplotlib
USER 1000
WORKDIR /work
ENTRYPOINT ["jetssl"]
