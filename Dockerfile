# Filmray with the extras of all capabilities, for Kubernetes: one image for all nodes.
FROM rayproject/ray:2.60.0-py311-gpu
RUN sudo apt-get update && sudo apt-get install -y --no-install-recommends ffmpeg && pip install uv==0.13.9
WORKDIR /home/ray/filmray
COPY --chown=ray:users pyproject.toml constraints.txt ./
RUN uv pip install --python "$(which python)" -c constraints.txt -r pyproject.toml --extra adam8bit --extra faces --extra google-generativeai --extra movie-characters --extra onnx --extra pytube --extra sentences --extra sound --extra text --extra tiny-vae --extra torchcodec --extra transformers --extra transnetv2
COPY --chown=ray:users actors actors
COPY --chown=ray:users jobs jobs
COPY --chown=ray:users pipelines pipelines
ENV PYTHONPATH=/home/ray/filmray
