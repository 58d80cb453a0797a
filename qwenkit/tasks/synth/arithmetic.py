"""Sums, differences and products, worked out digit by digit.

Operands: + and − of one to three digits (the difference may be negative), × of one or two digits.
The layout is made for a small transformer: the operands are first restated without spaces and
padded to the same width, each later step needs one single-digit fact and digits that stand next to
each other, results appear least significant digit first, and only then the whole number.

    347+586                                 347<586, so -(586-347)
    ones 7+6=13, write 3 carry 1            ones 6-7<0, 16-7=9, borrow 1
    tens 4+8+1=13, write 3 carry 1          tens 8-4-1=3, borrow 0
    hundreds 3+5+1=9, write 9 carry 0       hundreds 5-3-0=2, borrow 0
    Answer: 933                             Answer: -239

    47×6: 7×6=42, 4×6+4=24+4=28, so 282
    47×30: 7×3=21, 4×3+2=12+2=14, so 1410
    0282+1410: 2+0=2, 8+1+0=9, 2+4+0=6, 0+1+0=1
    Answer: 1692

Not covered: larger operands, decimals, division, more than one operation.
"""

from __future__ import annotations

import random

from qwenkit.tasks.synth.dialogue import NumberSkill, answer_line

OPERATORS = {
    "en": {
        "+": (" + ", " + ", "+", " plus "),
        "-": (" - ", " - ", "-", " minus "),
        "×": (" × ", "×", " * ", "*", " x ", " times ", " multiplied by "),
    },
    "zh": {
        "+": ("+", "+", " + ", "加", "加上"),
        "-": ("-", "-", " - ", "减", "减去"),
        "×": ("×", "×", " × ", "*", " * ", "乘", "乘以"),
    },
}
PHRASES = {
    "en": (
        "What is {}?", "what is {}", "What's {}?", "{}", "{} = ?", "Calculate {}.", "calculate {}",
        "Compute {}.", "How much is {}?", "Work out {}.", "Can you work out {}?",
        "Please calculate {}.", "Help me compute {}.", "Tell me what {} is.", "What does {} equal?",
        "Solve {} step by step.", "I need the result of {}.",
    ),
    "zh": (
        "{}等于多少？", "{}等于几？", "{}=?", "{}", "计算{}", "计算：{}", "请计算{}。",
        "{}是多少？", "请问{}等于多少？", "帮我算一下{}", "帮我算算{}。", "算一下{}",
        "{}的结果是多少？", "求{}的值。", "{}得多少？", "你能算出{}吗？",
    ),
}  # fmt: skip
PLACES = {"en": ("ones ", "tens ", "hundreds "), "zh": ("个位", "十位", "百位")}


class Arithmetic(NumberSkill):
    """Three-digit + and −, two-digit ×, with steps."""

    name = "arithmetic"

    def turn(self, rng: random.Random, lang: str) -> tuple[str, str]:
        operator = rng.choice("++--×××")
        widths = (1, 2, 2) if operator == "×" else (1, 2, 2, 3, 3, 3)
        a, b = draw_operand(rng, widths), draw_operand(rng, widths)
        expression = f"{a}{rng.choice(OPERATORS[lang][operator])}{b}"
        work = {"+": addition, "-": subtraction, "×": multiplication}[operator]
        return rng.choice(PHRASES[lang]).format(expression), work(a, b, lang)


def draw_operand(rng: random.Random, widths: tuple[int, ...]) -> int:
    """A number of one of the given widths; 0 is a one-digit number."""
    width = rng.choice(widths)
    return rng.randint(10 ** (width - 1) if width > 1 else 0, 10**width - 1)


def padded(a: int, b: int) -> tuple[str, str]:
    """Both numbers with leading zeros up to the width of the longer one."""
    width = max(len(str(a)), len(str(b)))
    return f"{a:0{width}d}", f"{b:0{width}d}"


def addition(a: int, b: int, lang: str) -> str:
    """The worked sum of two numbers below 1000."""
    left, right = padded(a, b)
    lines, carry = [f"{left}+{right}"], 0
    for place in range(len(left)):
        x, y = int(left[-1 - place]), int(right[-1 - place])
        terms = f"{x}+{y}" if place == 0 else f"{x}+{y}+{carry}"
        total = x + y + carry
        carry, digit = divmod(total, 10)
        note = f", write {digit} carry {carry}" if lang == "en" else f"，写{digit}进{carry}"
        lines.append(f"{PLACES[lang][place]}{terms}={total}{note}")
    return "\n".join([*lines, answer_line(lang, a + b)])


def subtraction(a: int, b: int, lang: str) -> str:
    """The worked difference: the smaller number is taken from the larger one; then the sign."""
    left, right = padded(a, b)
    sign = "<" if a < b else ">" if a > b else "="
    high, low = (right, left) if a < b else (left, right)
    difference = f"-({high}-{low})" if a < b else f"{high}-{low}"
    so, comma = (", so ", ", ") if lang == "en" else ("，算", "，")
    lines, borrow = [f"{left}{sign}{right}{so}{difference}"], 0
    for place in range(len(left)):
        x, y = int(high[-1 - place]), int(low[-1 - place])
        rest = f"-{y}" if place == 0 else f"-{y}-{borrow}"
        digit = x - y - borrow
        borrow = int(digit < 0)
        digit += 10 * borrow
        terms = f"{x}{rest}<0{comma}1{x}{rest}" if borrow else f"{x}{rest}"
        note = f", borrow {borrow}" if lang == "en" else f"，借{borrow}"
        lines.append(f"{PLACES[lang][place]}{terms}={digit}{note}")
    return "\n".join([*lines, answer_line(lang, a - b)])


def multiplication(a: int, b: int, lang: str) -> str:
    """The worked product of two numbers below 100.

    One line for each digit of the second factor, then the sum of the two partial products.
    """
    if a < 10 <= b:
        a, b = b, a
    if a < 10:
        return f"{a}×{b}={a * b}\n{answer_line(lang, a * b)}"
    lines = [partial_product(a, b % 10, 1, lang)]
    if b >= 10:
        lines.append(partial_product(a, b // 10, 10, lang))
        lines.append(compact_sum(a * (b % 10), a * (b // 10) * 10, lang))
    return "\n".join([*lines, answer_line(lang, a * b)])


def partial_product(a: int, digit: int, shift: int, lang: str) -> str:
    """One line: a two-digit number times one digit, times `shift` (1 or 10)."""
    tens, ones = divmod(a, 10)
    carry = ones * digit // 10
    upper = f"{tens}×{digit}+{carry}={tens * digit}+{carry}={tens * digit + carry}"
    if lang == "en":
        head, comma, end = ": ", ", ", ", so "
    else:
        head, comma, end = "：", "，", "，得"
    product = a * digit * shift
    return f"{a}×{digit * shift}{head}{ones}×{digit}={ones * digit}{comma}{upper}{end}{product}"


def compact_sum(a: int, b: int, lang: str) -> str:
    """One line: a sum digit by digit from the right; the carry is the next step's third term."""
    left, right = padded(a, b)
    steps, carry = [], 0
    for place in range(len(left)):
        x, y = int(left[-1 - place]), int(right[-1 - place])
        terms = f"{x}+{y}" if place == 0 else f"{x}+{y}+{carry}"
        total = x + y + carry
        steps.append(f"{terms}={total}")
        carry = total // 10
    head, comma = (": ", ", ") if lang == "en" else ("：", "，")
    return f"{left}+{right}{head}{comma.join(steps)}"


def compact_difference(a: int, b: int, lang: str) -> str:
    """One line: a difference with a ≥ b digit by digit from the right, the borrow as third term."""
    left, right = padded(a, b)
    steps, borrow = [], 0
    for place in range(len(left)):
        x, y = int(left[-1 - place]), int(right[-1 - place])
        rest = f"-{y}" if place == 0 else f"-{y}-{borrow}"
        digit = x - y - borrow
        borrow = int(digit < 0)
        steps += [f"{x}{rest}<0", f"1{x}{rest}={digit + 10}"] if borrow else [f"{x}{rest}={digit}"]
    head, comma = (": ", ", ") if lang == "en" else ("：", "，")
    return f"{left}-{right}{head}{comma.join(steps)}"
