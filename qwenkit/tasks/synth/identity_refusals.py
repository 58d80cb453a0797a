"""What lies outside the skills, and how questions are dressed (openers, final marks)."""

OTHERS = (
    "ChatGPT", "GPT-4", "Claude", "Gemini", "Llama", "DeepSeek", "Mistral", "Siri", "Alexa",
    "Copilot",
)  # fmt: skip
REFUSALS = {
    "en": (
        "What is the capital of {country}", "Where is {country}",
        "How many people live in {country}", "Who is the president of {country}",
        "Tell me about {country}", "Plan a trip to {country}",
        "What is the weather in {city} today", "Will it rain in {city} tomorrow",
        "Recommend a hotel in {city}", "What should I see in {city}",
        "Write a poem about {topic}", "Write a story about {topic}",
        "Tell me a joke about {topic}", "Write a song about {topic}",
        "Write an essay about {topic}", "Explain {science}", "What is {science}",
        "How does {science} work", "Teach me {science}", "Who wrote {work}", "Summarize {work}",
        "What is {work} about", "Recommend a book like {work}", "How do I cook {dish}",
        "Give me a recipe for {dish}", "How long does {dish} take to cook", "Who was {person}",
        "When was {person} born", "What did {person} do", "What is the price of {asset} today",
        "Should I buy {asset}",
    ),
    "zh": (
        "{country}的首都是哪里", "{country}在哪里", "{country}有多少人口", "{country}的总统是谁",
        "介绍一下{country}", "去{country}旅游怎么安排", "{city}今天天气怎么样",
        "{city}明天会下雨吗", "推荐一家{city}的酒店", "{city}有什么好玩的",
        "写一首关于{topic}的诗", "写一个关于{topic}的故事", "讲一个关于{topic}的笑话",
        "写一首关于{topic}的歌", "写一篇关于{topic}的作文", "解释一下{science}",
        "什么是{science}", "{science}是什么原理", "教我学{science}", "《{work}》是谁写的",
        "总结一下《{work}》", "《{work}》讲了什么", "推荐一本像《{work}》的书", "{dish}怎么做",
        "给我一个{dish}的菜谱", "做{dish}要多长时间", "{person}是谁", "{person}是哪年出生的",
        "{person}做过什么", "{asset}今天是什么价格", "我该买{asset}吗",
    ),
}  # fmt: skip
SUBJECTS = {
    "en": {
        "country": (
            "France", "Japan", "Brazil", "Egypt", "Canada", "India", "Norway", "Peru", "Kenya",
            "Spain", "Italy", "Mexico", "Poland", "Vietnam", "Australia", "Germany", "Chile",
            "Turkey",
        ),
        "city": (
            "Paris", "Tokyo", "Berlin", "London", "Beijing", "Shanghai", "Rome", "Madrid",
            "New York", "Cairo", "Sydney", "Oslo", "Vienna", "Moscow", "Seoul", "Lisbon",
        ),
        "topic": (
            "the sea", "love", "spring", "a cat", "the moon", "winter", "my mother", "rain",
            "a brave dog", "the city", "old friends", "a robot", "the stars", "autumn", "a river",
            "time",
        ),
        "science": (
            "quantum physics", "gravity", "photosynthesis", "black holes", "evolution",
            "relativity", "machine learning", "a nuclear reactor", "the stock market",
            "a jet engine", "DNA", "inflation", "blockchain", "the human brain", "electricity",
            "philosophy",
        ),
        "work": (
            "Hamlet", "War and Peace", "Don Quixote", "The Odyssey", "Moby Dick", "Faust",
            "Pride and Prejudice", "Les Misérables", "The Great Gatsby", "Dracula",
            "Frankenstein", "Macbeth",
        ),
        "dish": (
            "lasagna", "fried rice", "dumplings", "pancakes", "curry", "sushi", "onion soup",
            "pizza", "roast duck", "apple pie", "paella", "hot pot",
        ),
        "person": (
            "Einstein", "Mozart", "Napoleon", "Newton", "Confucius", "Cleopatra", "Shakespeare",
            "Marie Curie", "Darwin", "Picasso", "Galileo", "Gandhi",
        ),
        "asset": ("gold", "silver", "oil", "bitcoin", "coffee", "wheat", "copper", "Apple stock"),
    },
    "zh": {
        "country": (
            "法国", "日本", "巴西", "埃及", "加拿大", "印度", "挪威", "秘鲁", "肯尼亚", "西班牙",
            "意大利", "墨西哥", "波兰", "越南", "澳大利亚", "德国", "智利", "土耳其",
        ),
        "city": (
            "巴黎", "东京", "柏林", "伦敦", "北京", "上海", "罗马", "马德里", "纽约", "开罗",
            "悉尼", "广州", "维也纳", "莫斯科", "首尔", "成都",
        ),
        "topic": (
            "大海", "爱情", "春天", "小猫", "月亮", "冬天", "妈妈", "下雨", "一只勇敢的狗",
            "城市", "老朋友", "机器人", "星星", "秋天", "河流", "时间",
        ),
        "science": (
            "量子物理", "万有引力", "光合作用", "黑洞", "进化论", "相对论", "机器学习",
            "核反应堆", "股票市场", "喷气发动机", "基因", "通货膨胀", "区块链", "人的大脑", "电",
            "哲学",
        ),
        "work": (
            "哈姆雷特", "战争与和平", "堂吉诃德", "奥德赛", "红楼梦", "浮士德", "西游记",
            "悲惨世界", "水浒传", "三国演义", "呐喊", "骆驼祥子",
        ),
        "dish": (
            "宫保鸡丁", "蛋炒饭", "饺子", "红烧肉", "咖喱", "寿司", "麻婆豆腐", "披萨",
            "北京烤鸭", "小笼包", "糖醋鱼", "火锅",
        ),
        "person": (
            "爱因斯坦", "莫扎特", "拿破仑", "牛顿", "孔子", "秦始皇", "莎士比亚", "居里夫人",
            "达尔文", "毕加索", "李白", "鲁迅",
        ),
        "asset": ("黄金", "白银", "石油", "比特币", "咖啡", "小麦", "铜", "苹果股票"),
    },
}  # fmt: skip
OPENERS = {
    "en": (
        "", "", "", "", "Hi, ", "Hello, ", "Hey, ", "Hi! ", "Excuse me, ", "Quick question: ",
        "Sorry, ",
    ),
    "zh": (
        "", "", "", "", "你好，", "您好，", "请问，", "请问", "嗨，", "问一下，", "我想知道，",
    ),
}  # fmt: skip
ORDER_OPENERS = {
    "en": ("", "", "", "Hi, ", "Hello, ", "Hey, ", "Please ", "Hi, please ", "Now "),
    "zh": ("", "", "", "你好，", "您好，", "嗨，", "请", "请你", "你好，请", "现在"),
}  # fmt: skip
ASKING = {
    "en": (
        "who", "what", "what's", "how", "which", "where", "when", "why", "can", "do", "does",
        "did", "are", "is", "am", "was", "were", "will", "should", "you", "qwenkit",
    ),
    "zh": (
        "吗", "什么", "谁", "哪", "怎", "多少", "几", "如何", "吧", "是不是", "有多", "多大",
        "多长",
    ),
}  # fmt: skip
ORDERS_ZH = ("说说", "介绍", "教", "写", "讲", "解释", "总结", "推荐", "给我", "做个")
ENDINGS = {
    "en": ("?", "?", "?", "", "??"),
    "zh": ("？", "？", "？", "", "?", "？？"),
}  # fmt: skip
ORDER_ENDINGS = {
    "en": (".", ".", "", "!"),
    "zh": ("。", "。", "", "！"),
}  # fmt: skip
SMALL_TALK = ("hello", "thanks", "bye")
SMALL_TALK_ENDINGS = {
    "en": ("", "!", ".", "!!", " :)", "..."),
    "zh": ("", "！", "。", "~", "！！", " :)"),
}  # fmt: skip
