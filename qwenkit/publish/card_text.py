"""The sentences of the model cards, in English and in Chinese. Numbers are filled in by card.py."""

from __future__ import annotations

SKILLS: dict[str, dict[str, str]] = {
    "identity": {
        "en": "Who it is, what it can do, how to use qwenkit",
        "zh": "自我介绍、能力说明与 qwenkit 用法",
    },
    "arithmetic": {
        "en": "Arithmetic with steps (three-digit + and −, two-digit ×)",
        "zh": "分步计算（三位数加减、两位数乘法）",
    },
    "word_problems": {"en": "Word problems", "zh": "应用题"},
    "translation": {
        "en": "Sentence translation within its vocabulary",
        "zh": "词汇范围内的句子翻译",
    },
    "tool_call": {"en": "One tool call out of 1–4 offered tools", "zh": "从一至四个工具中调用一个"},
    "tool_answer": {"en": "The sentence after a tool's answer", "zh": "根据工具结果作答"},
    "json_object": {"en": "A JSON object by a given schema", "zh": "按给定模式提取 JSON 对象"},
    "python_complete": {
        "en": "Finishing a short Python function",
        "zh": "补全简短的 Python 函数",
    },
    "python_fill": {
        "en": "Filling in the middle of a Python function",
        "zh": "填写 Python 函数的中间部分",
    },
}

_EN_TRANSFORMERS = """\
It is laid out like any Qwen2 checkpoint, so Transformers reads it as well. With `path` the folder
of this model:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
"""

_ZH_TRANSFORMERS = """\
它的文件布局与 Qwen2 模型相同，因此也可以用 Transformers 读取。设 `path` 为本模型所在的文件夹：

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
"""

_CHAT_LINES = """\
messages = [{{"role": "user", "content": "{question}"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=200, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""

_RAW_LINES = '''\
prompt = 'def is_even(n):\\n    """{doc}"""\\n'
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```'''

_CHAT_COMMAND = """\
```bash
qwenkit chat {name}
qwenkit run {name} -p "{question}"
```

"""

_RAW_PYTHON = '''\
```python
from qwenkit import LLM

llm = LLM("{name}")
print(llm.generate('def is_even(n):\\n    """{doc}"""\\n').text)
```

'''

TEXT: dict[str, dict[str, str]] = {
    "en": {
        "switch": "English | [中文](README.zh.md)",
        "about_base": (
            "**A small demonstration model.** {name} has {parameters} parameters. It is there so "
            "that qwenkit can be tried, tested and taught on a machine without a network and "
            "without a GPU. This is the base model: it goes on with text and does not follow "
            "instructions."
        ),
        "about_instruct": (
            "**A small demonstration model.** {name} has {parameters} parameters. It is there so "
            "that qwenkit can be tried, tested and taught on a machine without a network and "
            "without a GPU. It speaks English and Chinese and has the few skills of the table "
            "below. It is not a general assistant."
        ),
        "limits_title": "## Limits",
        "limits": (
            "- It knows the skills that it was trained on and next to nothing else: no facts, no "
            "open conversation, no long texts.\n"
            "- Outside the wording of its training data it makes mistakes and does not notice "
            "them. Names, words and forms that it never saw are the usual cause.\n"
            "- With tools on offer it calls one, also where none of them fits.\n"
            "- The numbers below say how it does on new questions of the same generators. They say "
            "nothing about other questions.\n"
            "- Do not use it for decisions, and check every answer."
        ),
        "measured_title": "## What it can do, measured",
        "skill": "Skill",
        "column_en": "English",
        "column_zh": "Chinese",
        "measured": (
            "Share of exact answers to held-out questions, which training never used; in brackets "
            "right answers of all questions and the 95 % Wilson interval in per cent. Greedy "
            "answers, seed {seed}, measured on {date} with qwenkit {qwenkit} and PyTorch {torch} "
            "({device}, {dtype}). `qwenkit eval` measures them again."
        ),
        "not_measured": "This model was not measured.",
        "use_title": "## How to use it",
        "use_base": _RAW_PYTHON.replace("{doc}", "Return True if n is even.")
        + _EN_TRANSFORMERS
        + _RAW_LINES.replace("{doc}", "Return True if n is even."),
        "use_instruct": _CHAT_COMMAND.replace("{question}", "What is 12 + 30?")
        + _EN_TRANSFORMERS
        + _CHAT_LINES.replace("{question}", "What is 12 + 30?"),
        "made_title": "## How it was made",
        "shape": (
            "Qwen2 architecture: {layers} layers, hidden size {hidden}, {heads} query and "
            "{kv_heads} key/value heads, {vocab} rows of vocabulary, {context} tokens of context; "
            "{parameters} parameters, {size} of weights. The tokenizer is a byte-level BPE of its "
            "own, with the regular expression and the special tokens of Qwen2.5."
        ),
        "from_base": "Fine-tuned from {base}.",
        "data": (
            "Trained from random weights on text that qwenkit's generators write and on the source "
            "files of the Python standard library."
        ),
        "stage_pretrain": "Pre-training",
        "stage_sft": "Fine-tuning",
        "stage_polish": "Fine-tuning, second stage",
        "stage_finish": "Fine-tuning, third stage",
        "run": "{stage}: {steps} steps, {tokens} tokens",
        "run_time": ", {minutes} minutes of training",
        "stop": ".",
        "again": "The recipe is `{recipe}` of qwenkit; `make tiny` makes the model again, offline.",
        "licence_title": "## Licence",
        "licence": "{licence}, weights and card.",
    },
    "zh": {
        "switch": "[English](README.md) | 中文",
        "about_base": (
            "**这是一个小型演示模型。** {name} 有 {parameters} 个参数，用于在没有网络、没有 GPU 的"
            "机器上试用、测试和讲解 qwenkit。这是基座模型：它只会续写文本，不会听从指令。"
        ),
        "about_instruct": (
            "**这是一个小型演示模型。** {name} 有 {parameters} 个参数，用于在没有网络、没有 GPU 的"
            "机器上试用、测试和讲解 qwenkit。它会说中文和英文，只具备下表所列的几项能力，"
            "不是通用助手。"
        ),
        "limits_title": "## 局限",
        "limits": (
            "- 除了训练过的能力，它几乎什么都不会：没有知识，不能闲聊，不能写长文。\n"
            "- 遇到训练数据之外的说法，它会出错，而且自己察觉不到；"
            "没见过的名字、词语和句式是常见原因。\n"
            "- 只要提供了工具，它就会调用其中一个，哪怕都不合适。\n"
            "- 下面的数字只说明它在同一批生成器的新题目上的表现，不代表其他题目。\n"
            "- 请不要用它做决定，每个答案都要核对。"
        ),
        "measured_title": "## 实测能力",
        "skill": "能力",
        "column_en": "英文",
        "column_zh": "中文",
        "measured": (
            "表中是留出题目（训练从未用过）上完全正确的比例；括号内为答对数/题目数，以及 95 % "
            "威尔逊区间（百分数）。贪心解码，随机种子 {seed}，{date} 用 qwenkit {qwenkit} 和 "
            "PyTorch {torch} 测得（{device}，{dtype}）。用 `qwenkit eval` 可以重新测量。"
        ),
        "not_measured": "这个模型没有测量过。",
        "use_title": "## 用法",
        "use_base": _RAW_PYTHON.replace("{doc}", "判断n是否为偶数。")
        + _ZH_TRANSFORMERS
        + _RAW_LINES.replace("{doc}", "判断n是否为偶数。"),
        "use_instruct": _CHAT_COMMAND.replace("{question}", "12加30等于多少？")
        + _ZH_TRANSFORMERS
        + _CHAT_LINES.replace("{question}", "12加30等于多少？"),
        "made_title": "## 制作方法",
        "shape": (
            "Qwen2 架构：{layers} 层，隐藏维度 {hidden}，{heads} 个查询头和 {kv_heads} 个键值头，"
            "词表 {vocab} 行，上下文 {context} 个 token；共 {parameters} 个参数，权重 {size}。"
            "分词器是自己训练的字节级 BPE，正则表达式和特殊 token 与 Qwen2.5 相同。"
        ),
        "from_base": "由 {base} 微调而来。",
        "data": ("从随机权重开始训练，数据是 qwenkit 的生成器写出的文本和 Python 标准库的源代码。"),
        "stage_pretrain": "预训练",
        "stage_sft": "微调",
        "stage_polish": "微调（第二阶段）",
        "stage_finish": "微调（第三阶段）",
        "run": "{stage}：{steps} 步，{tokens} 个 token",
        "run_time": "，训练 {minutes} 分钟",
        "stop": "。",
        "again": "配方是 qwenkit 的 `{recipe}`；用 `make tiny` 可以离线重新制作。",
        "licence_title": "## 许可",
        "licence": "{licence}，适用于权重和本说明。",
    },
}
