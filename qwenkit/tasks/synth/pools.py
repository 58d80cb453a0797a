"""Names, things and the vocabulary of the translation grammar: data for the generators."""

from __future__ import annotations

from dataclasses import dataclass

NAMES = {
    "en": (
        "Tom", "Anna", "Ben", "Lucy", "Sam", "Emma", "Jack", "Mia", "Leo", "Kate", "Paul", "Rose",
        "Max", "Nina", "Peter", "Julia",
    ),
    "zh": (
        "小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小美", "李雷", "王芳", "张伟",
        "刘洋", "陈晨", "赵敏", "小亮", "小雨",
    ),
}  # fmt: skip
THINGS_EN = (
    "apples", "oranges", "pears", "eggs", "pens", "pencils", "books", "stamps", "cards", "coins",
    "marbles", "balloons", "candies", "erasers", "stickers", "balls",
)  # fmt: skip
THINGS_ZH = (
    ("苹果", "个"), ("橙子", "个"), ("梨", "个"), ("鸡蛋", "个"), ("钢笔", "支"), ("铅笔", "支"),
    ("故事书", "本"), ("邮票", "张"), ("卡片", "张"), ("硬币", "枚"), ("弹珠", "颗"),
    ("气球", "个"), ("糖果", "颗"), ("橡皮", "块"), ("贴纸", "张"), ("桃子", "个"),
)  # fmt: skip


@dataclass(frozen=True)
class Noun:
    """A thing that is counted: English singular and plural, Chinese with its measure word."""

    one: str
    many: str
    zh: str
    measure: str
    uses: frozenset[str]
    """Keys of the verbs that take it as object."""
    adjectives: tuple[str, ...]


@dataclass(frozen=True)
class Mass:
    """Food or drink that is counted in containers: "two cups of tea", 两杯茶."""

    en: str
    zh: str
    container: tuple[str, str]
    measure: str
    uses: frozenset[str]


@dataclass(frozen=True)
class Verb:
    """English forms and the Chinese verb (of an activity: with its object, 踢足球)."""

    base: str
    third: str
    past: str
    ing: str
    zh: str


@dataclass(frozen=True)
class Subject:
    """A subject. `person` is "I", "you", "he", "she" or "they" as far as English grammar asks.

    `possessive` is None where the gender is not known, so that no sentence needs it.
    """

    en: str
    zh: str
    person: str
    possessive: str | None = None

    @property
    def kin(self) -> bool:
        """Whether this is somebody's parent or grandparent."""
        return self.en.endswith(("father", "mother"))


NUMBERS = (
    ("a", "一"), ("two", "两"), ("three", "三"), ("four", "四"), ("five", "五"), ("six", "六"),
    ("seven", "七"), ("eight", "八"), ("nine", "九"), ("ten", "十"),
)  # fmt: skip
ADJECTIVES = {
    # English: before a noun, after 很/太/不
    "big": ("大", "大"), "small": ("小", "小"), "new": ("新", "新"), "old": ("旧", "旧"),
    "red": ("红色的", ""), "white": ("白色的", ""), "black": ("黑色的", ""), "blue": ("蓝色的", ""),
    "green": ("绿色的", ""), "yellow": ("黄色的", ""), "cheap": ("便宜的", "便宜"),
    "expensive": ("昂贵的", "贵"), "beautiful": ("漂亮的", "漂亮"),
    "interesting": ("有趣的", "有趣"), "fresh": ("新鲜的", "新鲜"),
}  # fmt: skip
_FRUIT = ("big", "small", "fresh", "cheap")
_READING = ("new", "old", "interesting", "cheap", "expensive")
_CLOTHES = ("new", "old", "red", "white", "black", "blue", "cheap", "expensive", "beautiful")
_GOODS = ("new", "old", "big", "small", "red", "black", "white", "cheap", "expensive")
_ANIMAL = ("big", "small", "white", "black", "beautiful")


def _noun(text: str, uses: str, adjectives: tuple[str, ...]) -> Noun:
    one, many, zh, measure = text.split("/")
    return Noun(one, many, zh, measure, frozenset(uses.split()), adjectives)


NOUNS = (
    _noun("apple/apples/苹果/个", "eat buy sell like want need wash", (*_FRUIT, "red", "green")),
    _noun("orange/oranges/橙子/个", "eat buy sell like want need wash", _FRUIT),
    _noun("banana/bananas/香蕉/根", "eat buy sell like want need", (*_FRUIT, "yellow")),
    _noun("egg/eggs/鸡蛋/个", "eat buy sell like want need", (*_FRUIT, "white")),
    _noun("cake/cakes/蛋糕/个", "eat buy sell like want need make", _FRUIT),
    _noun("book/books/书/本", "read write buy sell like want need have", _READING),
    _noun("magazine/magazines/杂志/本", "read buy sell like want have", _READING),
    _noun("dictionary/dictionaries/词典/本", "use buy sell want need have", _READING),
    _noun("newspaper/newspapers/报纸/份", "read buy sell want have", ("new", "old")),
    _noun("letter/letters/信/封", "read write have", ("old", "interesting")),
    _noun("pen/pens/钢笔/支", "use buy sell like want need have", _GOODS),
    _noun("shirt/shirts/衬衫/件", "wash buy sell like want need have", _CLOTHES),
    _noun("coat/coats/外套/件", "wash buy sell like want need have", _CLOTHES),
    _noun("skirt/skirts/裙子/条", "wash buy sell like want need have", _CLOTHES),
    _noun("hat/hats/帽子/顶", "wash buy sell like want need have", _CLOTHES),
    _noun("car/cars/汽车/辆", "wash buy sell like want need have", _GOODS),
    _noun("bicycle/bicycles/自行车/辆", "wash buy sell like want need have", _GOODS),
    _noun("chair/chairs/椅子/把", "make buy sell like want need have", _GOODS),
    _noun("table/tables/桌子/张", "make wash buy sell like want need have", _GOODS),
    _noun("umbrella/umbrellas/雨伞/把", "use buy sell like want need have", _GOODS),
    _noun("key/keys/钥匙/把", "make want need have", ("new", "old", "big", "small")),
    _noun("cup/cups/杯子/个", "wash buy sell like want need have", _GOODS),
    _noun("bag/bags/包/个", "make wash buy sell like want need have", _GOODS),
    _noun("computer/computers/电脑/台", "use buy sell like want need have", _GOODS),
    _noun("phone/phones/手机/部", "use buy sell like want need have", _GOODS),
    _noun("ticket/tickets/票/张", "buy sell want need have", ("cheap", "expensive")),
    _noun("map/maps/地图/张", "use draw buy sell want need have", ("new", "old", "big")),
    _noun("flower/flowers/花/朵", "draw buy sell like want",
          ("red", "white", "yellow", "beautiful", "small")),
    _noun("tree/trees/树/棵", "draw like", ("big", "small", "beautiful")),
    _noun("cat/cats/猫/只", "draw wash like want have", _ANIMAL),
    _noun("dog/dogs/狗/只", "draw wash like want have", _ANIMAL),
    _noun("bird/birds/鸟/只", "draw like want have", (*_ANIMAL, "blue", "green")),
    _noun("horse/horses/马/匹", "draw wash like want have", _ANIMAL),
)  # fmt: skip
MASSES = (
    Mass("tea", "茶", ("cup", "cups"), "杯", frozenset("drink like want".split())),
    Mass("coffee", "咖啡", ("cup", "cups"), "杯", frozenset("drink like want need".split())),
    Mass("milk", "牛奶", ("glass", "glasses"), "杯", frozenset("drink like want need".split())),
    Mass("juice", "果汁", ("glass", "glasses"), "杯", frozenset("drink like want".split())),
    Mass("water", "水", ("bottle", "bottles"), "瓶", frozenset("drink want need buy".split())),
    Mass("beer", "啤酒", ("bottle", "bottles"), "瓶", frozenset("drink like want buy".split())),
    Mass("rice", "米饭", ("bowl", "bowls"), "碗", frozenset("eat like want".split())),
    Mass("noodles", "面条", ("bowl", "bowls"), "碗", frozenset("eat like want".split())),
    Mass("bread", "面包", ("piece", "pieces"), "块", frozenset("eat like want buy".split())),
)
ACTIONS = {
    "eat": Verb("eat", "eats", "ate", "eating", "吃"),
    "drink": Verb("drink", "drinks", "drank", "drinking", "喝"),
    "buy": Verb("buy", "buys", "bought", "buying", "买"),
    "sell": Verb("sell", "sells", "sold", "selling", "卖"),
    "read": Verb("read", "reads", "read", "reading", "看"),
    "write": Verb("write", "writes", "wrote", "writing", "写"),
    "draw": Verb("draw", "draws", "drew", "drawing", "画"),
    "wash": Verb("wash", "washes", "washed", "washing", "洗"),
    "use": Verb("use", "uses", "used", "using", "用"),
    "make": Verb("make", "makes", "made", "making", "做"),
}
STATES = {
    "like": Verb("like", "likes", "liked", "liking", "喜欢"),
    "want": Verb("want", "wants", "wanted", "wanting", "想要"),
    "need": Verb("need", "needs", "needed", "needing", "需要"),
    "have": Verb("have", "has", "had", "having", "有"),
}
ACTIVITIES = (
    Verb("swim", "swims", "swam", "swimming", "游泳"),
    Verb("run", "runs", "ran", "running", "跑步"),
    Verb("sing", "sings", "sang", "singing", "唱歌"),
    Verb("dance", "dances", "danced", "dancing", "跳舞"),
    Verb("cook", "cooks", "cooked", "cooking", "做饭"),
    Verb("sleep", "sleeps", "slept", "sleeping", "睡觉"),
    Verb("work", "works", "worked", "working", "工作"),
    Verb("rest", "rests", "rested", "resting", "休息"),
    Verb("draw", "draws", "drew", "drawing", "画画"),
    Verb("play football", "plays football", "played football", "playing football", "踢足球"),
    Verb("play basketball", "plays basketball", "played basketball", "playing basketball",
         "打篮球"),
    Verb("play the piano", "plays the piano", "played the piano", "playing the piano", "弹钢琴"),
    Verb("study English", "studies English", "studied English", "studying English", "学习英语"),
    Verb("study Chinese", "studies Chinese", "studied Chinese", "studying Chinese", "学习中文"),
    Verb("watch TV", "watches TV", "watched TV", "watching TV", "看电视"),
    Verb("listen to music", "listens to music", "listened to music", "listening to music",
         "听音乐"),
    Verb("take photos", "takes photos", "took photos", "taking photos", "拍照"),
    Verb("drink tea", "drinks tea", "drank tea", "drinking tea", "喝茶"),
)  # fmt: skip
ABILITIES = (
    ("swim", "游泳"), ("sing", "唱歌"), ("dance", "跳舞"), ("cook", "做饭"), ("drive", "开车"),
    ("play the piano", "弹钢琴"), ("play football", "踢足球"), ("play basketball", "打篮球"),
    ("speak English", "说英语"), ("speak Chinese", "说中文"), ("ride a horse", "骑马"),
    ("ride a bicycle", "骑自行车"), ("draw", "画画"),
)  # fmt: skip
SUBJECTS = (
    Subject("I", "我", "I", "my"),
    Subject("you", "你", "you", "your"),
    Subject("he", "他", "he", "his"),
    Subject("she", "她", "he", "her"),
    Subject("we", "我们", "you", "our"),
    Subject("they", "他们", "you", "their"),
    Subject("my father", "我爸爸", "he", "his"),
    Subject("my mother", "我妈妈", "he", "her"),
    Subject("your father", "你爸爸", "he", "his"),
    Subject("your mother", "你妈妈", "he", "her"),
    Subject("his grandfather", "他爷爷", "he", "his"),
    Subject("her grandmother", "她奶奶", "he", "her"),
    Subject("my friend", "我的朋友", "he"),
    Subject("our teacher", "我们的老师", "he"),
    Subject("the doctor", "医生", "he"),
    Subject("the children", "孩子们", "you", "their"),
    Subject("the students", "学生们", "you", "their"),
    Subject("Li Hua", "李华", "he"),
    Subject("Xiao Ming", "小明", "he"),
    Subject("Wang Fang", "王芳", "he"),
)
"""`person` picks the verb form: "I" (am), "you" (are, base form), "he" (is, -s)."""
JOBS = (
    ("doctor", "医生"), ("teacher", "老师"), ("student", "学生"), ("driver", "司机"),
    ("nurse", "护士"), ("engineer", "工程师"), ("writer", "作家"), ("singer", "歌手"),
    ("farmer", "农民"), ("cook", "厨师"),
)  # fmt: skip
PLACES = (
    ("in the park", "公园"), ("at school", "学校"), ("at home", "家"), ("in the library", "图书馆"),
    ("in the office", "办公室"), ("in the garden", "花园"), ("in the restaurant", "餐馆"),
    ("at the station", "车站"),
)  # fmt: skip
LIVELY = frozenset(
    ("swim", "run", "sing", "dance", "play football", "play basketball", "take photos")
)
LIVELY_PLACES = (("in the park", "公园"), ("at school", "学校"))
HOMELY = frozenset(("cook", "sleep", "play the piano", "watch TV", "eat", "wash"))
HOMELY_PLACES = (("at home", "家"), ("at school", "学校"), ("in the restaurant", "餐馆"))
"""Where people do lively and homely things; other things they do in any of `PLACES`."""
DESTINATIONS = (
    ("to school", "学校"), ("to the park", "公园"), ("to the library", "图书馆"),
    ("to the hospital", "医院"), ("to the bank", "银行"), ("to the station", "车站"),
    ("to Beijing", "北京"), ("to Shanghai", "上海"), ("to the museum", "博物馆"),
)  # fmt: skip
CITIES = ("北京", "上海")
CITY_TRANSPORT = (("by bus", "坐公共汽车"), ("by train", "坐火车"), ("by plane", "坐飞机"))
TRANSPORT = (("by bus", "坐公共汽车"), ("by taxi", "坐出租车"), ("by bicycle", "骑自行车"))
HABIT_TIMES = (
    ("every day", "每天"), ("every morning", "每天早上"), ("every evening", "每天晚上"),
    ("every week", "每周"), ("every weekend", "每个周末"),
)  # fmt: skip
PAST_TIMES = (
    ("yesterday", "昨天"), ("last night", "昨晚"), ("the day before yesterday", "前天"),
    ("last week", "上周"), ("last month", "上个月"), ("last year", "去年"),
)  # fmt: skip
FUTURE_TIMES = (
    ("tomorrow", "明天"), ("tonight", "今晚"), ("the day after tomorrow", "后天"),
    ("next week", "下周"), ("next month", "下个月"), ("next year", "明年"),
)  # fmt: skip
NEAR = 4
"""So many of the past and of the future times are near enough for small things (a cup of tea)."""
LASTING = frozenset(("buy", "sell", "write", "make"))
"""Verbs that go with the far times too."""
FREQUENCIES = (
    ("often", "经常"), ("always", "总是"), ("sometimes", "有时"), ("usually", "通常"),
    ("never", "从不"),
)  # fmt: skip
SPOTS = (
    ("on the table", "桌子上"), ("under the table", "桌子下面"), ("on the chair", "椅子上"),
    ("under the chair", "椅子下面"), ("in the bag", "包里"), ("in the box", "盒子里"),
    ("behind the door", "门后面"), ("under the bed", "床下面"), ("on the bed", "床上"),
    ("in the car", "汽车里"),
)  # fmt: skip
SCENES = (
    ("in the park", "公园里"), ("in the garden", "花园里"), ("in the room", "房间里"),
    ("in the kitchen", "厨房里"), ("in the classroom", "教室里"), ("on the table", "桌子上"),
)  # fmt: skip
REQUESTS = {
    "en": (
        "Translate to Chinese: {}",
        "Translate into Chinese: {}",
        "translate to Chinese: {}",
        "Please translate this sentence into Chinese: {}",
        "Please translate into Chinese:\n{}",
        'How do you say "{}" in Chinese?',
        'What is "{}" in Chinese?',
        "Put this into Chinese: {}",
        "{}\nTranslate this into Chinese.",
        'Translate "{}" into Chinese.',
        "English to Chinese: {}",
        "Can you translate this into Chinese? {}",
    ),
    "zh": (
        "翻译成英文：{}",
        "翻译成英语：{}",
        "把这句话翻译成英文：{}",
        "请把这句话翻译成英语：{}",
        "请翻译成英文：\n{}",
        "“{}”用英语怎么说？",
        "“{}”的英文是什么？",
        "中译英：{}",
        "{}\n把上面的句子翻译成英文。",
        "请将“{}”译成英语。",
        "帮我翻译成英文：{}",
        "这句话用英文怎么说？{}",
    ),
}
