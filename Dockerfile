# diffcodec on a CPU:
#   docker build -t diffcodec .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" diffcodec encode photo.png
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY diffcodec diffcodec
COPY models models
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
RUN pip install --no-cache-dir "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu
COPY --from=build /wheels /wheels
RUN wheel=$(ls /wheels/*.whl) && pip install --no-cache-dir "$wheel[compare]" && rm -r /wheels
# Where compiled code is kept, for any user of the container.
ENV NUMBA_CACHE_DIR=/tmp/numba HOME=/tmp
WORKDIR /work
ENTRYPOINT ["diffcodec"]
CMD ["--help"]
