# Make .venv and install into it, once; sourced by demo.sh and test.sh.
# usage: . scripts/setup.sh EXTRAS   (such as "" or "[dev]")

extras="$1"
python="${PYTHON:-python3}"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "error: Python 3.10 or newer is needed; set PYTHON to one, such as PYTHON=python3.11" >&2
    exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv

# What was installed is remembered: a second run starts at once, a changed pyproject installs again.
stamp=".venv/installed-$(printf '%s' "$extras" | tr -dc 'a-z')"
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "installing into .venv ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
    # torch first and pinned to what was tested; whether it brings gigabytes of CUDA is up to the
    # package index; PIP_EXTRA_INDEX_URL adds one without (see PyTorch's page on installing)
    .venv/bin/python -m pip install --quiet torch==2.13.0
    .venv/bin/python -m pip install --quiet --editable ".$extras"
    touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
