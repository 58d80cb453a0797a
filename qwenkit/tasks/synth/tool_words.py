"""Words that the tool requests are made of, by kind and language. Data only."""

from __future__ import annotations

WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "city": {
        "en": tuple(
            "Paris Rome Berlin Madrid London Vienna Prague Oslo Dublin Lisbon Athens Cairo "
            "Tokyo Beijing Shanghai "
            "Seoul Delhi Sydney Boston Chicago Toronto Lima Moscow Hangzhou Bangkok Singapore "
            "Milan Geneva".split()
        ),
        "zh": tuple(
            "北京 上海 广州 深圳 杭州 南京 成都 重庆 武汉 西安 天津 苏州 青岛 大连 厦门 昆明 "
            "长沙 郑州 济南 沈阳 "
            "香港 巴黎 伦敦 东京 纽约 柏林 罗马 悉尼".split()
        ),
    },
    "name": {
        "en": tuple(
            "Anna Ben Clara David Emma Frank Grace Henry Irene Jack Kate Leo Mary Nina Oscar "
            "Paul Rosa Sam Tina "
            "Victor Wendy Tom Lucy Peter".split()
        ),
        "zh": tuple(
            "小明 小红 小刚 小丽 李华 王芳 张伟 刘洋 陈静 赵磊 周敏 吴强 孙燕 林涛 妈妈 爸爸 "
            "老师 经理 "
            "王老师 李医生".split()
        ),
    },
    "day": {
        "en": tuple(
            "Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow".split()
        ),
        "zh": tuple("周一 周二 周三 周四 周五 周六 周日 今天 明天 后天".split()),
    },
    "weekday": {
        "en": tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
        "zh": tuple("周一 周二 周三 周四 周五 周六 周日 今天 明天 后天".split()),
    },
    "singer": {
        "en": (
            "Anna Lee",
            "Ben Stone",
            "The Green Birds",
            "Clara Moon",
            "Frank Hill",
            "The Night Owls",
            "Rosa Silva",
        ),
        "zh": tuple("周晓 林雪 王海 小虎乐队 夜莺组合 陈星 白云乐队".split()),
    },
    "dish": {
        "en": (
            "fried rice",
            "noodle soup",
            "pizza",
            "green salad",
            "dumplings",
            "chicken curry",
            "fish soup",
            "apple pie",
            "beef stew",
            "tomato pasta",
            "spring rolls",
            "roast duck",
        ),
        "zh": tuple("炒饭 牛肉面 饺子 披萨 沙拉 鱼汤 烤鸭 包子 春卷 豆腐 咖喱饭 番茄面".split()),
    },
    "room": {
        "en": (
            "kitchen",
            "bedroom",
            "bathroom",
            "living room",
            "office",
            "garage",
            "hall",
            "study",
        ),
        "zh": tuple("厨房 卧室 浴室 客厅 办公室 车库 走廊 书房".split()),
    },
    "place": {
        "en": (
            "Green Garden",
            "Blue Lake",
            "Golden Fish",
            "Old Bridge",
            "Red Lantern",
            "White Horse",
            "Sunny Corner",
            "Silver Moon",
        ),
        "zh": tuple("绿园餐厅 蓝湖饭店 金鱼酒家 老桥饭馆 红灯笼 白马餐厅 阳光小馆 银月楼".split()),
    },
    "sky": {
        "en": ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy"),
        "zh": tuple("晴 多云 小雨 大风 有雾 小雪".split()),
    },
    "currency": {
        "en": ("USD", "EUR", "CNY", "GBP", "JPY"),
        "zh": ("美元", "欧元", "人民币", "英镑", "日元"),
    },
    "song": {
        "en": ("Blue", "Silent", "Golden", "Lonely", "Summer", "Winter", "Little", "Distant"),
        "zh": tuple("蓝色 安静 金色 孤单 夏天 冬天 小小 远方".split()),
    },
    "song_end": {
        "en": ("River", "Night", "Road", "Star", "Garden", "Rain", "Train", "Bird"),
        "zh": tuple("的河 的夜 的路 的星 的花园 的雨 的火车 的鸟".split()),
    },
    "who": {
        "en": ("I will be", "We are", "The team is", "I am", "The train is", "Our guests are"),
        "zh": tuple("我 我们 他们 大家 朋友 客人".split()),
    },
    "state": {
        "en": (
            "late",
            "at home",
            "on the way",
            "ready",
            "in the office",
            "ten minutes away",
            "back soon",
            "here now",
        ),
        "zh": tuple("晚点到 在家 在路上 准备好了 在公司 马上到 很快回来 到门口了".split()),
    },
    "event": {
        "en": ("team", "project", "family", "budget", "school", "customer", "morning", "garden"),
        "zh": tuple("团队 项目 家庭 预算 学校 客户 早间 设计".split()),
    },
    "event_end": {
        "en": ("meeting", "dinner", "call", "review", "party", "lesson"),
        "zh": tuple("会议 聚餐 电话 评审 聚会 课程".split()),
    },
    "do": {
        "en": ("buy", "find", "check", "bring", "order", "collect", "sell", "pack"),
        "zh": tuple("买 找 检查 带上 卖掉 寄出 取 收拾".split()),
    },
    "thing": {
        "en": (
            "the bike",
            "the tickets",
            "the camera",
            "two books",
            "new shoes",
            "the lamp",
            "an umbrella",
            "the boxes",
        ),
        "zh": tuple("自行车 车票 相机 雨伞 两本书 新鞋 台灯 箱子".split()),
    },
    "topic": {
        "en": (
            "tea",
            "bridges",
            "whales",
            "bicycles",
            "volcanoes",
            "paper",
            "robots",
            "chess",
            "the moon",
            "bees",
        ),
        "zh": tuple("茶 桥 鲸鱼 自行车 火山 纸 机器人 围棋 月亮 蜜蜂".split()),
    },
    "aspect": {
        "en": (
            "history of",
            "facts about",
            "books about",
            "pictures of",
            "news about",
            "videos of",
        ),
        "zh": tuple("的历史 的知识 的书 的图片 的新闻 的视频".split()),
    },
}

RATES = {"USD": 1.0, "EUR": 1.1, "CNY": 0.14, "GBP": 1.25, "JPY": 0.007}
PHRASES: tuple[dict[str, str], ...] = tuple(
    dict(zip(("en", "zh", "French", "German", "Spanish"), row.split("|"), strict=True))
    for row in (
        "good morning|早上好|bonjour|guten Morgen|buenos días",
        "good night|晚安|bonne nuit|gute Nacht|buenas noches",
        "thank you|谢谢|merci|danke|gracias", "goodbye|再见|au revoir|auf Wiedersehen|adiós",
        "water|水|eau|Wasser|agua",
        "bread|面包|pain|Brot|pan", "the book|书|le livre|das Buch|el libro",
        "friend|朋友|ami|Freund|amigo",
        "the sun|太阳|le soleil|die Sonne|el sol", "the house|房子|la maison|das Haus|la casa",
        "the cat|猫|le chat|die Katze|el gato", "the dog|狗|le chien|der Hund|el perro",
    )
)  # fmt: skip
TARGETS = {
    "en": {"French": "French", "German": "German", "Spanish": "Spanish", "Chinese": "zh"},
    "zh": {"法语": "French", "德语": "German", "西班牙语": "Spanish", "英语": "en"},
}
