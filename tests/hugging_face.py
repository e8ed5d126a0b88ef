"""Hugging Face models, tiny, built from their configurations with random weights: nothing is downloaded."""

from __future__ import annotations

import contextlib
import io
import warnings

from torch import nn

with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # what it says of packages it does not find
    warnings.simplefilter("ignore")
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

VOCABULARY = 17
CLASSES = 3
PADDING = 0


def bert(attention: str = "sdpa") -> nn.Module:
    """BERT with a classifier; `attention` is ``"sdpa"`` or ``"eager"``, the implementation transformers is to use."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=8,
            num_labels=CLASSES,
            attn_implementation=attention,
        )
    ).eval()


def gpt2(attention: str = "sdpa") -> nn.Module:
    """GPT-2 with its language-model head, tied to the embedding."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=8,
            n_layer=2,
            n_head=2,
            n_positions=8,
            bos_token_id=PADDING,
            eos_token_id=PADDING,
            attn_implementation=attention,
        )
    ).eval()


def llama(attention: str = "sdpa") -> nn.Module:
    """Llama with grouped queries. Its RMS norms compute in float32 whatever the dtype of the model."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=12,
            max_position_embeddings=8,
            attn_implementation=attention,
        )
    ).eval()
