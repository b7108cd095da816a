"""Settings of the whole test run."""

import os

# Before anything imports transformers: tests never ask a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
