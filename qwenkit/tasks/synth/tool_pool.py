"""The tools that the tiny family learns to call: definitions, requests, results and closing
sentences, as data.

Each `Tool` is one row of `TOOLS`. Names of functions and parameters come in variants, so a model
has to read the schema that it is offered and cannot learn the names by heart. Results are made up;
only sums, exchange rates (rough) and translations are computed. Not covered: several calls in one
turn, nested or array parameters.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwenkit.tasks.synth.tool_words import PHRASES, RATES, TARGETS, WORDS

Values = dict[str, Any]
Sampler = Callable[[random.Random, str], Values]
Outcome = Callable[[random.Random, str, Values], Values]


@dataclass(frozen=True)
class Param:
    """One parameter: the slot it fills in a request, the names that a schema may give it, its JSON
    type.
    """

    slot: str
    names: tuple[str, ...]
    type: str = "string"
    required: bool = True


@dataclass(frozen=True)
class Tool:
    """One tool. Request templates name slots in braces; slots that start with `_` are wording, not
    arguments.
    """

    names: tuple[str, ...]
    about: dict[str, str]
    params: tuple[Param, ...]
    asks: dict[str, tuple[str, ...]]
    values: Sampler
    result: Outcome
    says: dict[str, str]

    def schema(self, lang: str, rng: random.Random) -> tuple[dict[str, Any], dict[str, str]]:
        """The definition in OpenAI's form, with the names chosen, and the map from slot to
        parameter name.
        """
        chosen = {param.slot: rng.choice(param.names) for param in self.params}
        function = {
            "name": rng.choice(self.names),
            "description": self.about[lang],
            "parameters": {
                "type": "object",
                "properties": {chosen[param.slot]: {"type": param.type} for param in self.params},
                "required": [chosen[param.slot] for param in self.params if param.required],
            },
        }
        return {"type": "function", "function": function}, chosen


def _pick(*slots: str) -> Sampler:
    """A sampler of one word per slot; `slot:kind` takes the word of another kind."""
    pairs = [(slot.split(":")[0], slot.split(":")[-1]) for slot in slots]
    return lambda rng, lang: {slot: rng.choice(WORDS[kind][lang]) for slot, kind in pairs}


def _join(lang: str, *parts: str) -> str:
    return (" " if lang == "en" else "").join(parts)


def _phrase(kind: str, end: str, slot: str) -> Sampler:
    """A sampler of a two-word phrase, so that most held-out phrases were never seen whole."""

    def sample(rng: random.Random, lang: str) -> Values:
        return {slot: _join(lang, rng.choice(WORDS[kind][lang]), rng.choice(WORDS[end][lang]))}

    return sample


def _all(*samplers: Sampler) -> Sampler:
    def sample(rng: random.Random, lang: str) -> Values:
        return {key: value for sampler in samplers for key, value in sampler(rng, lang).items()}

    return sample


def _int(slot: str, low: int, high: int) -> Sampler:
    return lambda rng, lang: {slot: rng.randint(low, high)}


def _clock(rng: random.Random, lang: str) -> Values:
    return {"time": f"{rng.randint(6, 22):02d}:{rng.randrange(0, 60, 5):02d}"}


def _two(kind: str) -> Sampler:
    def sample(rng: random.Random, lang: str) -> Values:
        first, second = rng.sample(WORDS[kind][lang], 2)
        return {"from": first, "to": second}

    return sample


def _query(rng: random.Random, lang: str) -> Values:
    aspect, topic = rng.choice(WORDS["aspect"][lang]), rng.choice(WORDS["topic"][lang])
    return {"query": f"{aspect} {topic}" if lang == "en" else topic + aspect}


def _expression(rng: random.Random, lang: str) -> Values:
    first, second = rng.randint(2, 99), rng.randint(2, 99)
    return {"expression": f"{first} {rng.choice('+-*')} {second}"}


def _light(rng: random.Random, lang: str) -> Values:
    on = rng.random() < 0.5
    words = ("on", "off") if lang == "en" else ("打开", "关闭")
    return {
        "room": rng.choice(WORDS["room"][lang]),
        "on": on,
        "_state": words[0] if on else words[1],
    }


def _parcel(rng: random.Random, lang: str) -> Values:
    return {"number": f"{rng.randint(1000, 99999)}"}


def _translation(rng: random.Random, lang: str) -> Values:
    return {"text": rng.choice(PHRASES)[lang], "language": rng.choice(sorted(TARGETS[lang]))}


def _translated(rng: random.Random, lang: str, values: Values) -> Values:
    row = next(row for row in PHRASES if row[lang] == values["text"])
    return {"language": values["language"], "translation": row[TARGETS[lang][values["language"]]]}


def _converted(rng: random.Random, lang: str, values: Values) -> Values:
    rates = dict(zip(WORDS["currency"][lang], RATES.values(), strict=True))
    value = max(1, round(values["amount"] * rates[values["from"]] / rates[values["to"]]))
    return {"amount": values["amount"], "from": values["from"], "result": value, "to": values["to"]}


def _calculated(rng: random.Random, lang: str, values: Values) -> Values:
    left, sign, right = values["expression"].split()
    a, b = int(left), int(right)
    return {
        "expression": values["expression"],
        "result": {"+": a + b, "-": a - b, "*": a * b}[sign],
    }


def _echo(*slots: str, extra: Sampler | None = None) -> Outcome:
    """A result that repeats some arguments (those that were given) and adds what `extra` draws."""

    def outcome(rng: random.Random, lang: str, values: Values) -> Values:
        return {slot: values[slot] for slot in slots} | (extra(rng, lang) if extra else {})

    return outcome


TOOLS: tuple[Tool, ...] = (
    Tool(
        ("get_weather", "weather"),
        {"en": "Current weather", "zh": "查询天气"},
        (Param("city", ("city", "location")),),
        {"en": ("What is the weather like in {city}?", "How is the weather in {city} now?",
                "Weather in {city}, please.",
                "Is it raining in {city}?"),
         "zh": ("{city}天气怎么样？", "请查一下{city}的天气。", "{city}现在下雨吗？",
                "我想知道{city}的天气。")},
        _pick("city"),
        _echo("city", extra=_all(_pick("sky"), _int("temperature", -9, 38))),
        {"en": "In {city} it is {sky} and {temperature} degrees.",
         "zh": "{city}现在{sky}，气温{temperature}度。"},
    ),
    Tool(
        ("get_time", "clock"),
        {"en": "Local time", "zh": "查询时间"},
        (Param("city", ("city", "location")),),
        {"en": ("What time is it in {city}?", "Tell me the time in {city}.",
                "How late is it in {city} now?"),
         "zh": ("{city}现在几点？", "请告诉我{city}的时间。", "现在{city}是几点钟？")},
        _pick("city"),
        _echo("city", extra=_clock),
        {"en": "It is {time} in {city}.", "zh": "{city}现在是{time}。"},
    ),
    Tool(
        ("set_timer", "timer"),
        {"en": "Start a timer", "zh": "设置计时器"},
        (Param("minutes", ("minutes", "duration"), "integer"),),
        {"en": ("Set a timer for {minutes} minutes.", "Start a {minutes} minute timer.",
                "Tell me when {minutes} minutes are over."),
         "zh": ("设一个{minutes}分钟的计时器。", "请计时{minutes}分钟。",
                "{minutes}分钟后提醒我。")},
        _int("minutes", 2, 99),
        _echo("minutes"),
        {"en": "The timer is set for {minutes} minutes.", "zh": "计时器已设为{minutes}分钟。"},
    ),
    Tool(
        ("set_alarm", "alarm"),
        {"en": "Set an alarm clock", "zh": "设置闹钟"},
        (Param("time", ("time", "at")),
         Param("day", ("day", "date"), required=False)),
        {"en": ("Wake me at {time}.", "Set an alarm for {time}.",
                "Set an alarm for {time} on {day}.", "Wake me on {day} at {time}."),
         "zh": ("{time}叫我起床。", "把闹钟设在{time}。", "请设一个{day}{time}的闹钟。",
                "{day}{time}叫醒我。")},
        _all(_clock, _pick("day:weekday")),
        _echo("time"),
        {"en": "The alarm is set for {time}.", "zh": "闹钟已设在{time}。"},
    ),
    Tool(
        ("convert_currency", "exchange"),
        {"en": "Convert money", "zh": "货币换算"},
        (Param("amount", ("amount", "value"), "integer"), Param("from", ("from", "source")),
         Param("to", ("to", "target"))),
        {"en": ("Convert {amount} {from} to {to}.", "How much is {amount} {from} in {to}?",
                "What is {amount} {from} worth in {to}?"),
         "zh": ("把{amount}{from}换成{to}。", "{amount}{from}是多少{to}？",
                "请把{amount}{from}换算成{to}。")},
        _all(_int("amount", 2, 999), _two("currency")),
        _converted,
        {"en": "{amount} {from} is {result} {to}.", "zh": "{amount}{from}等于{result}{to}。"},
    ),
    Tool(
        ("send_message", "send_sms"),
        {"en": "Send a message", "zh": "发送消息"},
        (Param("name", ("to", "recipient")), Param("text", ("text", "message"))),
        {"en": ('Send {name} the message "{text}".', "Write to {name}: {text}.",
                'Tell {name} "{text}", please.'),
         "zh": ("给{name}发消息：{text}。", "告诉{name}“{text}”。",
                "请给{name}发一条消息，说“{text}”。")},
        _all(_pick("name"), _phrase("who", "state", "text")),
        _echo("name"),
        {"en": "The message to {name} has been sent.", "zh": "给{name}的消息已经发出。"},
    ),
    Tool(
        ("translate", "translate_text"),
        {"en": "Translate a text", "zh": "翻译文字"},
        (Param("text", ("text", "source")), Param("language", ("language", "target"))),
        {"en": ('Translate "{text}" into {language}.', 'How do you say "{text}" in {language}?',
                'What is "{text}" in {language}?'),
         "zh": ("把“{text}”翻译成{language}。", "“{text}”用{language}怎么说？",
                "请把“{text}”译成{language}。")},
        _translation,
        _translated,
        {"en": 'In {language} that is "{translation}".', "zh": "用{language}说是“{translation}”。"},
    ),
    Tool(
        ("search_web", "search"),
        {"en": "Search the web", "zh": "搜索网页"},
        (Param("query", ("query", "keywords")),),
        {"en": ("Search the web for {query}.", "Look up {query} on the web.",
                'Search for "{query}", please.'),
         "zh": ("上网搜索{query}。", "请在网上查{query}。", "搜索“{query}”。")},
        _query,
        _echo("query", extra=_int("count", 2, 999)),
        {"en": "I found {count} pages for {query}.", "zh": "关于{query}找到了{count}个网页。"},
    ),
    Tool(
        ("play_music", "play_song"),
        {"en": "Play a song", "zh": "播放歌曲"},
        (Param("song", ("song", "title")), Param("name", ("artist", "singer"), required=False)),
        {"en": ("Play {song}.", 'Play the song "{song}" by {name}.',
                "I want to hear {song} by {name}."),
         "zh": ("播放《{song}》。", "播放{name}的《{song}》。", "我想听{name}唱的《{song}》。")},
        _all(_phrase("song", "song_end", "song"), _pick("name:singer")),
        _echo("song"),
        {"en": "Now playing {song}.", "zh": "正在播放《{song}》。"},
    ),
    Tool(
        ("order_food", "order"),
        {"en": "Order food", "zh": "点餐"},
        (Param("dish", ("dish", "food")), Param("count", ("count", "portions"), "integer")),
        {"en": ("Order {count} portions of {dish}.", "I would like {count} portions of {dish}.",
                "Please get me {dish}, {count} portions."),
         "zh": ("点{count}份{dish}。", "我要{count}份{dish}。", "请帮我订{dish}，一共{count}份。")},
        _all(_pick("dish"), _int("count", 2, 20)),
        _echo("dish", "count", extra=_int("minutes", 10, 75)),
        {"en": "{count} portions of {dish} will arrive in {minutes} minutes.",
         "zh": "{count}份{dish}将在{minutes}分钟后送到。"},
    ),
    Tool(
        ("add_event", "create_event"),
        {"en": "Add a calendar event", "zh": "添加日程"},
        (Param("title", ("title", "event")), Param("day", ("day", "date")),
         Param("time", ("time", "start"), required=False)),
        {"en": ('Put "{title}" into my calendar for {day}.', "New calendar entry: {title}, {day}.",
                "Add {title}, {day} at {time}, to my calendar."),
         "zh": ("把“{title}”加到{day}的日程里。", "新建日程：{day}，{title}。",
                "在日历里添加{day}{time}的{title}。")},
        _all(_phrase("event", "event_end", "title"), _pick("day"), _clock),
        _echo("title", "day"),
        {"en": '"{title}" is in your calendar for {day}.', "zh": "“{title}”已加到{day}的日程。"},
    ),
    Tool(
        ("calculate", "calculator"),
        {"en": "Calculate", "zh": "计算"},
        (Param("expression", ("expression", "formula")),),
        {"en": ("Calculate {expression}.", "What is {expression}?",
                "Work out {expression}, please."),
         "zh": ("计算{expression}。", "{expression}等于多少？", "请算一下{expression}。")},
        _expression,
        _calculated,
        {"en": "{expression} = {result}", "zh": "{expression} = {result}"},
    ),
    Tool(
        ("book_table", "reserve_table"),
        {"en": "Book a restaurant table", "zh": "预订餐桌"},
        (Param("place", ("restaurant", "place")), Param("people", ("people", "guests"),
                                                        "integer"), Param("time", ("time", "at"))),
        {"en": ("Book a table for {people} at {place} at {time}.",
                "We are {people} people and want to eat at {place} at {time}.",
                "Reserve a table at {place} for {people} people at {time}."),
         "zh": ("在{place}订一张{people}人桌，{time}到。",
                "我们{people}个人{time}想去{place}吃饭，请订位。",
                "请预订{place}{time}的座位，{people}人。")},
        _all(_pick("place"), _int("people", 2, 12), _clock),
        _echo("place", "people", "time"),
        {"en": "A table for {people} is booked at {place} at {time}.",
         "zh": "已在{place}订好{time}的{people}人桌。"},
    ),
    Tool(
        ("set_light", "switch_light"),
        {"en": "Switch a light", "zh": "开关灯"},
        (Param("room", ("room", "place")), Param("on", ("on", "power"), "boolean")),
        {"en": ("Turn {_state} the light in the {room}.", "Switch the {room} light {_state}.",
                "Please turn the lights in the {room} {_state}."),
         "zh": ("{_state}{room}的灯。", "把{room}的灯{_state}。", "请{_state}{room}里的灯。")},
        _light,
        _echo("room", "on"),
        {"en": "The light in the {room} is {_state}.", "zh": "{room}的灯已{_state}。"},
    ),
    Tool(
        ("add_todo", "add_task"),
        {"en": "Add to the to-do list", "zh": "添加待办"},
        (Param("task", ("task", "item")),),
        {"en": ("Remind me to {task}.", "Put on my to-do list: {task}.", "Add a task: {task}.",
                "I must not forget to {task}."),
         "zh": ("提醒我{task}。", "待办：{task}。", "把“{task}”加到待办清单。",
                "别让我忘了{task}。")},
        _phrase("do", "thing", "task"),
        _echo("task", extra=_int("open", 2, 30)),
        {"en": 'Noted: "{task}". You have {open} open tasks.',
         "zh": "已记下“{task}”，共有{open}项待办。"},
    ),
    Tool(
        ("find_flight", "search_flights"),
        {"en": "Find a flight", "zh": "查询航班"},
        (Param("from", ("from", "origin")), Param("to", ("to", "destination")),
        
         Param("day", ("day", "date"), required=False)),
        {"en": ("Find a flight from {from} to {to}.", "I want to fly from {from} to {to} on {day}.",
                "Is there a flight to {to} from {from} on {day}?"),
         "zh": ("查一下从{from}到{to}的航班。", "我想{day}从{from}飞到{to}。",
                "{day}从{from}去{to}有航班吗？")},
        _all(_two("city"), _pick("day:weekday")),
        _echo("from", "to", extra=_all(_clock, _int("price", 40, 990))),
        {"en": "A flight from {from} to {to} leaves at {time} and costs {price} euros.",
         "zh": "{from}到{to}的航班{time}起飞，票价{price}元。"},
    ),
    Tool(
        ("track_parcel", "parcel_status"),
        {"en": "Track a parcel", "zh": "查询包裹"},
        (Param("number", ("number", "parcel")),),
        {"en": ("Where is parcel {number}?", "Track parcel {number}.",
                "Has parcel {number} arrived?"),
         "zh": ("包裹{number}在哪里？", "查询包裹{number}。", "我的{number}号包裹到了吗？")},
        _parcel,
        _echo("number", extra=_pick("city")),
        {"en": "Parcel {number} is in {city}.", "zh": "包裹{number}现在在{city}。"},
    ),
)  # fmt: skip
