# docker build -t jetssl .
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD":/work -w /work jetssl --help
ARG BASE=python:3.11-slim
FROM ${BASE}

COPY pyproject.toml constraints.txt README.md CHANGELOG.md LICENSE /src/
COPY jetssl_cli /src/jetssl_cli
COPY configs /src/configs
COPY data_recipes /src/data_recipes
COPY workflow /src/workflow
RUN python -m pip install --no-cache-dir --constraint /src/constraints.txt /src && rm -rf /src

RUN useradd --create-home --uid 1000 jetssl
USER 1000
WORKDIR /home/jetssl
ENTRYPOINT ["jetssl"]
