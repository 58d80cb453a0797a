"""Short Python functions as rows of data: names, parameters, docstrings in two languages and one body each.

A row's variants multiply: any of its names with any names of its parameters, any docstring, any constant. The body
follows from what stands above it, so a completion has one right answer. Bodies are plain Python without imports.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One function.

    `names` and the docstrings are alternatives split by "|". `params` holds one word per parameter, each a
    comma-separated list of possible names; the first is what `$name` refers to in the docstrings and in the body.
    `constant` is the inclusive range of `$k`, (0, 0) where there is none.
    """

    names: str
    params: str
    en: str
    zh: str
    body: str
    constant: tuple[int, int] = (0, 0)


_N = "n,x,number,value"
_X = "x,n,value,number"
_AB = "a,x,first,left b,y,second,right"
_XS = "xs,numbers,values,items"
_S = "s,text,string,word"
_WORDS = "words,names,strings,parts"

ROWS: tuple[Row, ...] = (
    # one number
    Row("is_even|even|check_even", _N, "Return True if $n is even.|Check whether $n is even.",
        "判断$n是否为偶数。|如果$n是偶数，返回True。", "return $n % 2 == 0"),
    Row("is_odd|odd|check_odd", _N, "Return True if $n is odd.|Check whether $n is odd.",
        "判断$n是否为奇数。|如果$n是奇数，返回True。", "return $n % 2 == 1"),
    Row("square|squared|get_square", _X, "Return the square of $x.|Compute $x squared.",
        "返回$x的平方。|计算$x的平方。", "return $x * $x"),
    Row("cube|cubed|get_cube", _X, "Return the cube of $x.|Compute $x to the power of three.",
        "返回$x的立方。|计算$x的三次方。", "return $x * $x * $x"),
    Row("add_number|increase|plus", _X, "Return $x plus $k.|Add $k to $x.", "返回$x加$k。|把$x加上$k。",
        "return $x + $k", (1, 99)),
    Row("subtract_number|decrease|minus", _X, "Return $x minus $k.|Subtract $k from $x.",
        "返回$x减$k。|从$x减去$k。", "return $x - $k", (1, 99)),
    Row("multiply|scale|times", _X, "Return $x times $k.|Multiply $x by $k.", "返回$x乘以$k。|把$x乘以$k。",
        "return $x * $k", (2, 99)),
    Row("is_multiple|is_divisible|divides", _X, "Return True if $x is a multiple of $k.|Check whether $x is divisible by $k.",
        "判断$x是否为$k的倍数。|判断$x能否被$k整除。", "return $x % $k == 0", (3, 29)),
    Row("is_greater|above|is_large", _X, "Return True if $x is greater than $k.|Check whether $x is above $k.",
        "判断$x是否大于$k。|如果$x大于$k，返回True。", "return $x > $k", (1, 99)),
    Row("is_positive|positive|check_positive", _X, "Return True if $x is positive.|Check whether $x is greater than zero.",
        "判断$x是否为正数。|如果$x大于零，返回True。", "return $x > 0"),
    Row("absolute|abs_value|magnitude", _X, "Return the absolute value of $x.|Return $x without its sign.",
        "返回$x的绝对值。|去掉$x的符号。", "if $x < 0:\n    return -$x\nreturn $x"),
    Row("sign|sign_of|get_sign", _X, "Return -1, 0 or 1, the sign of $x.|Return the sign of $x as -1, 0 or 1.",
        "返回$x的符号：-1、0或1。|用-1、0、1表示$x的符号。",
        "if $x > 0:\n    return 1\nif $x < 0:\n    return -1\nreturn 0"),
    Row("factorial|fact|compute_factorial", _N, "Return the factorial of $n.|Compute $n factorial with a loop.",
        "返回$n的阶乘。|用循环计算$n的阶乘。", "result = 1\nfor i in range(2, $n + 1):\n    result *= i\nreturn result"),
    Row("fibonacci|fib|nth_fibonacci", _N, "Return Fibonacci number $n.|Compute the Fibonacci number with index $n.",
        "返回第$n个斐波那契数。|计算下标为$n的斐波那契数。",
        "a, b = 0, 1\nfor _ in range($n):\n    a, b = b, a + b\nreturn a"),
    Row("sum_to|sum_up_to|total_to", _N, "Return the sum of the numbers from 1 to $n.|Add up all numbers from 1 to $n.",
        "返回1到$n的和。|计算从1到$n的总和。", "return $n * ($n + 1) // 2"),
    Row("is_prime|prime|check_prime", _N, "Return True if $n is a prime number.|Check whether $n is prime.",
        "判断$n是否为质数。|如果$n是质数，返回True。",
        "if $n < 2:\n    return False\nfor i in range(2, $n):\n    if $n % i == 0:\n        return False\nreturn True"),
    Row("digit_sum|sum_digits|sum_of_digits", _N, "Return the sum of the digits of $n.|Add up the digits of $n.",
        "返回$n各位数字之和。|计算$n的各位数字的和。", "return sum(int(digit) for digit in str($n))"),
    Row("count_digits|num_digits|digit_count", _N, "Return how many digits $n has.|Count the digits of $n.",
        "返回$n有几位数字。|数一数$n的位数。", "return len(str($n))"),
    Row("countdown|count_down|down_from", _N, "Return the numbers from $n down to 1.|List all numbers from $n down to 1.",
        "返回从$n到1的数。|列出从$n递减到1的所有数。", "return list(range($n, 0, -1))"),
    Row("divisors|get_divisors|find_divisors", _N, "Return all divisors of $n.|List the numbers that divide $n.",
        "返回$n的所有约数。|列出能整除$n的数。", "return [i for i in range(1, $n + 1) if $n % i == 0]"),
    Row("fizzbuzz|fizz_buzz|fizz", _N, "Return Fizz, Buzz, FizzBuzz or $n as text.|Play FizzBuzz with $n.",
        "返回Fizz、Buzz、FizzBuzz或$n的文本。|对$n做FizzBuzz。",
        "if $n % 15 == 0:\n    return \"FizzBuzz\"\nif $n % 3 == 0:\n    return \"Fizz\"\n"
        "if $n % 5 == 0:\n    return \"Buzz\"\nreturn str($n)"),
    Row("is_leap_year|leap_year|is_leap", "year,y", "Return True if $year is a leap year.|Check whether $year is a leap year.",
        "判断$year年是否为闰年。|如果$year是闰年，返回True。",
        "return $year % 4 == 0 and ($year % 100 != 0 or $year % 400 == 0)"),
    # two and three numbers
    Row("add|plus|sum_of_two", _AB, "Return the sum of $a and $b.|Add $a and $b.", "返回$a与$b的和。|把$a和$b相加。",
        "return $a + $b"),
    Row("maximum|larger|max_of_two", _AB, "Return the larger of $a and $b.|Return the maximum of $a and $b.",
        "返回$a和$b中较大的数。|求$a和$b的最大值。", "if $a > $b:\n    return $a\nreturn $b"),
    Row("minimum|smaller|min_of_two", _AB, "Return the smaller of $a and $b.|Return the minimum of $a and $b.",
        "返回$a和$b中较小的数。|求$a和$b的最小值。", "if $a < $b:\n    return $a\nreturn $b"),
    Row("gcd|greatest_common_divisor|common_divisor", _AB, "Return the greatest common divisor of $a and $b.|Compute the gcd of $a and $b.",
        "返回$a和$b的最大公约数。|求$a与$b的最大公约数。", "while $b:\n    $a, $b = $b, $a % $b\nreturn $a"),
    Row("power|pow_loop|raise_to", "base,a,x exponent,n,times", "Return $base to the power of $exponent.|Multiply $base by itself $exponent times.",
        "返回$base的$exponent次方。|把$base自乘$exponent次。",
        "result = 1\nfor _ in range($exponent):\n    result *= $base\nreturn result"),
    Row("safe_divide|divide|safe_div", _AB, "Return $a divided by $b, or None if $b is zero.|Divide $a by $b; give None for zero.",
        "返回$a除以$b，$b为零时返回None。|用$a除以$b，除数为零则返回None。", "if $b == 0:\n    return None\nreturn $a / $b"),
    Row("distance|difference|gap", _AB, "Return the distance between $a and $b.|Return how far $a and $b are apart.",
        "返回$a和$b的距离。|求$a与$b相差多少。", "return abs($a - $b)"),
    Row("clamp|limit|bound", "x,value,n low,lo,minimum high,hi,maximum", "Limit $x to the range from $low to $high.|Return $x, but at least $low and at most $high.",
        "把$x限制在$low到$high之间。|返回$x，不小于$low，不大于$high。",
        "if $x < $low:\n    return $low\nif $x > $high:\n    return $high\nreturn $x"),
    Row("in_range|between|is_between", "x,value,n low,lo,minimum high,hi,maximum", "Return True if $x lies between $low and $high.|Check whether $x is from $low to $high.",
        "判断$x是否在$low和$high之间。|如果$x在$low到$high的范围内，返回True。", "return $low <= $x <= $high"),
    Row("average|mean|mean_of_three", "a,x b,y c,z", "Return the average of $a, $b and $c.|Compute the mean of $a, $b and $c.",
        "返回$a、$b和$c的平均值。|求$a、$b、$c的平均数。", "return ($a + $b + $c) / 3"),
    # formulas
    Row("celsius_to_fahrenheit|to_fahrenheit|c_to_f", "celsius,c,degrees,temp", "Convert $celsius from Celsius to Fahrenheit.|Turn degrees Celsius into Fahrenheit.",
        "把摄氏度$celsius换算成华氏度。|摄氏温度转华氏温度。", "return $celsius * 9 / 5 + 32"),
    Row("fahrenheit_to_celsius|to_celsius|f_to_c", "fahrenheit,f,degrees,temp", "Convert $fahrenheit from Fahrenheit to Celsius.|Turn degrees Fahrenheit into Celsius.",
        "把华氏度$fahrenheit换算成摄氏度。|华氏温度转摄氏温度。", "return ($fahrenheit - 32) * 5 / 9"),
    Row("rectangle_area|area|area_of_rectangle", "width,w,a height,h,b", "Return the area of a rectangle.|Compute the area from $width and $height.",
        "返回长方形的面积。|由$width和$height计算面积。", "return $width * $height"),
    Row("perimeter|rectangle_perimeter|get_perimeter", "width,w,a height,h,b", "Return the perimeter of a rectangle.|Compute the perimeter from $width and $height.",
        "返回长方形的周长。|由$width和$height计算周长。", "return 2 * ($width + $height)"),
    Row("to_seconds|total_seconds|seconds", "hours,h minutes,m", "Return $hours hours and $minutes minutes in seconds.|Convert $hours and $minutes to seconds.",
        "把$hours小时$minutes分钟换算成秒。|返回$hours和$minutes共多少秒。", "return $hours * 3600 + $minutes * 60"),
    Row("discount|reduced_price|sale_price", "price,cost,amount", "Return $price reduced by $k percent.|Take $k percent off $price.",
        "返回$price减去百分之$k后的价格。|把$price降低百分之$k。", "return $price * (100 - $k) / 100", (2, 90)),
    # text
    Row("reverse|reverse_string|backwards", _S, "Return $s reversed.|Reverse the characters of $s.", "返回反转后的$s。|把$s的字符倒过来。",
        "return $s[::-1]"),
    Row("is_palindrome|palindrome|check_palindrome", _S, "Return True if $s reads the same backwards.|Check whether $s is a palindrome.",
        "判断$s是否为回文。|如果$s倒过来读也一样，返回True。", "return $s == $s[::-1]"),
    Row("count_vowels|vowels|vowel_count", _S, "Count the vowels in $s.|Return how many vowels $s has.", "统计$s中元音的个数。|返回$s里有几个元音字母。",
        "return sum(1 for char in $s.lower() if char in \"aeiou\")"),
    Row("remove_vowels|drop_vowels|without_vowels", _S, "Return $s without its vowels.|Remove all vowels from $s.",
        "返回去掉元音的$s。|删除$s中的元音字母。", "return \"\".join(char for char in $s if char not in \"aeiou\")"),
    Row("count_words|word_count|num_words", _S, "Count the words in $s.|Return how many words $s has.", "统计$s中的单词数。|返回$s里有几个单词。",
        "return len($s.split())"),
    Row("remove_spaces|strip_spaces|no_spaces", _S, "Return $s without spaces.|Remove all spaces from $s.", "返回去掉空格的$s。|删除$s中的所有空格。",
        "return $s.replace(\" \", \"\")"),
    Row("count_char|count_letter|occurrences", "s,text,string char,letter,c", "Count how often $char occurs in $s.|Return the number of $char in $s.",
        "统计$char在$s中出现的次数。|返回$s里有几个$char。", "return $s.count($char)"),
    Row("repeat|repeat_text|copies", "s,text,string n,count,times", "Return $s repeated $n times.|Repeat $s $n times.", "返回重复$n次的$s。|把$s重复$n遍。",
        "return $s * $n"),
    Row("first_chars|prefix|head", _S, "Return the first $k characters of $s.|Take $k characters from the start of $s.",
        "返回$s的前$k个字符。|取$s开头的$k个字符。", "return $s[:$k]", (2, 30)),
    Row("last_chars|suffix|tail", _S, "Return the last $k characters of $s.|Take $k characters from the end of $s.",
        "返回$s的后$k个字符。|取$s末尾的$k个字符。", "return $s[-$k:]", (2, 30)),
    Row("initials|first_letters|get_initials", _S, "Return the first letters of the words in $s.|Join the initials of all words in $s.",
        "返回$s中各单词的首字母。|把$s里单词的首字母连起来。", "return \"\".join(word[0] for word in $s.split())"),
    # lists
    Row("find_max|largest|list_max", _XS, "Return the largest number in $xs.|Find the maximum of $xs with a loop.", "返回$xs中最大的数。|用循环找出$xs的最大值。",
        "best = $xs[0]\nfor item in $xs:\n    if item > best:\n        best = item\nreturn best"),
    Row("find_min|smallest|list_min", _XS, "Return the smallest number in $xs.|Find the minimum of $xs with a loop.", "返回$xs中最小的数。|用循环找出$xs的最小值。",
        "best = $xs[0]\nfor item in $xs:\n    if item < best:\n        best = item\nreturn best"),
    Row("sum_list|total|add_all", _XS, "Return the sum of $xs with a loop.|Add up everything in $xs.", "用循环求$xs的和。|把$xs中的数全部相加。",
        "total = 0\nfor item in $xs:\n    total += item\nreturn total"),
    Row("product|multiply_all|list_product", _XS, "Return the product of the numbers in $xs.|Multiply all numbers in $xs.", "返回$xs中所有数的乘积。|把$xs中的数相乘。",
        "result = 1\nfor item in $xs:\n    result *= item\nreturn result"),
    Row("average|mean|list_mean", _XS, "Return the average of $xs.|Compute the mean of the numbers in $xs.", "返回$xs的平均值。|求$xs中数的平均数。",
        "return sum($xs) / len($xs)"),
    Row("spread|value_range|max_minus_min", _XS, "Return the largest minus the smallest of $xs.|Return the difference of the maximum and the minimum of $xs.",
        "返回$xs的最大值减最小值。|求$xs的极差。", "return max($xs) - min($xs)"),
    Row("unique|unique_sorted|distinct", _XS, "Return the different items of $xs, sorted.|Remove repeated items from $xs and sort.",
        "返回$xs中不同的元素并排序。|去掉$xs里的重复元素后排序。", "return sorted(set($xs))"),
    Row("is_sorted|sorted_up|check_sorted", _XS, "Return True if $xs is sorted.|Check whether $xs is in rising order.",
        "判断$xs是否已排序。|如果$xs按升序排列，返回True。", "return all(a <= b for a, b in zip($xs, $xs[1:]))"),
    Row("running_sum|cumulative_sum|running_total", _XS, "Return the running sums of $xs.|List the sum of $xs after each item.",
        "返回$xs的累加和。|列出$xs逐项相加的结果。",
        "total = 0\nresult = []\nfor item in $xs:\n    total += item\n    result.append(total)\nreturn result"),
    Row("second_largest|second_max|runner_up", _XS, "Return the second largest number in $xs.|Find the second highest value of $xs.",
        "返回$xs中第二大的数。|找出$xs里第二高的值。", "return sorted($xs)[-2]"),
    Row("contains|has_item|includes", "xs,items,values target,x,item", "Return True if $target is in $xs.|Check whether $xs contains $target.",
        "判断$target是否在$xs中。|如果$xs包含$target，返回True。", "return $target in $xs"),
    Row("index_of|find_index|position", "xs,items,values target,x,key", "Return the index of $target in $xs, or -1.|Find where $target is in $xs; -1 if it is missing.",
        "返回$target在$xs中的下标，没有则返回-1。|查找$target在$xs的位置，找不到返回-1。",
        "for i, item in enumerate($xs):\n    if item == $target:\n        return i\nreturn -1"),
    Row("chunks|split_list|batches", "xs,items,values size,n,width", "Split $xs into lists of length $size.|Cut $xs into pieces of $size items.",
        "把$xs分成长度为$size的小列表。|将$xs每$size个分为一组。", "return [$xs[i:i + $size] for i in range(0, len($xs), $size)]"),
    Row("flatten|flat_list|join_lists", "lists,rows,groups,nested", "Return all items of $lists in one list.|Flatten $lists by one level.",
        "把$lists中的元素放进一个列表。|将$lists展开一层。", "return [item for part in $lists for item in part]"),
    Row("common|intersection|in_both", _AB, "Return the sorted items that are in both $a and $b.|List what $a and $b have in common, sorted.",
        "返回$a和$b共有的元素并排序。|列出$a与$b的交集，排好序。", "return sorted(set($a) & set($b))"),
    Row("dot|dot_product|inner_product", _AB, "Return the dot product of $a and $b.|Multiply $a and $b item by item and add up.",
        "返回$a和$b的点积。|把$a与$b逐项相乘再求和。", "return sum(p * q for p, q in zip($a, $b))"),
    Row("take|first_items|top", _XS, "Return the first $k items of $xs.|Take $k items from the start of $xs.",
        "返回$xs的前$k个元素。|取$xs开头的$k个元素。", "return $xs[:$k]", (2, 30)),
    # words and dictionaries
    Row("longest|longest_word|find_longest", _WORDS, "Return the longest of $words.|Find the word with the most letters in $words.",
        "返回$words中最长的单词。|找出$words里字母最多的词。", "return max($words, key=len)"),
    Row("join_words|join_all|sentence", _WORDS, "Join $words with spaces.|Return $words as one text with spaces.", "用空格连接$words。|把$words用空格连成一段文本。",
        "return \" \".join($words)"),
    Row("lengths|word_lengths|get_lengths", _WORDS, "Return the length of every word in $words.|List how long the words in $words are.",
        "返回$words中每个词的长度。|列出$words里各词的长度。", "return [len(word) for word in $words]"),
    Row("count_items|frequencies|tally", "items,xs,values,words", "Return a dict with the count of each item in $items.|Count how often each item occurs in $items.",
        "返回$items中每个元素出现次数的字典。|统计$items里各元素出现的次数。",
        "counts = {}\nfor key in $items:\n    counts[key] = counts.get(key, 0) + 1\nreturn counts"),
    Row("invert|invert_dict|swap_keys", "d,table,mapping,data", "Swap the keys and the values of $d.|Return $d with keys and values exchanged.",
        "交换$d的键和值。|返回键值互换的$d。", "return {value: key for key, value in $d.items()}"),
    Row("merge|merge_dicts|combine", _AB, "Merge the dicts $a and $b.|Return one dict with the items of $a and $b.",
        "合并字典$a和$b。|返回包含$a和$b内容的字典。", "return {**$a, **$b}"),
    Row("make_dict|to_dict|pair_up", "keys,names values,items", "Return a dict from $keys to $values.|Pair $keys with $values in a dict.",
        "用$keys和$values组成字典。|把$keys与$values配成字典。", "return dict(zip($keys, $values))"),
    Row("lookup|get_value|find", "d,table,mapping key,name", "Return the value of $key in $d, or $k.|Look up $key in $d; give $k if it is missing.",
        "返回$d中$key的值，没有则返回$k。|在$d里查找$key，找不到返回$k。", "return $d.get($key, $k)", (0, 99)),
)  # fmt: skip
