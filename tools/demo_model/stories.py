# SPDX-License-Identifier: Apache-2.0
"""The small world of the demo model: who lives in it, and the stories that happen there.

`tell(rng, ...)` returns a Story: a list of sentences, and the questions the story answers. Every
sentence pattern was written for this project. Nothing is read from outside.
"""

GIRLS = ("Mia Lily Ruby Anna Rosa Clara Nina Ella Daisy Hazel Ivy Maya Zoe Nora Lucy Tilly Poppy "
         "Flora Greta Wendy").split()
BOYS = ("Tom Ben Max Sam Leo Finn Oscar Jack Hugo Milo Theo Otto Felix Toby Noah Ned Luke Ravi "
        "Omar Kit").split()
NAMES = GIRLS + BOYS
PRONOUN = {n: ("she", "her", "her") for n in GIRLS}
PRONOUN.update({n: ("he", "him", "his") for n in BOYS})

ANIMALS = ("fox rabbit bear mouse owl frog duck cat dog squirrel hedgehog deer badger goat lamb "
           "otter turtle lion elephant monkey pony pig").split()
TRAITS = "little young small clever kind shy brave quiet cheerful curious gentle".split()
COLOURS = "red blue green yellow purple orange white black pink brown golden silver".split()
TOYS = "ball kite drum doll boat bell lantern whistle top ring cup book".split()
FOODS = "apples berries honey bread soup cake cheese carrots nuts plums pears corn".split()
PLACES = ("forest,river,hill,meadow,garden,lake,village,beach,farm,mountain,pond,valley").split(",")
SPOTS = ("under a big leaf;behind an old log;under the bridge;in the tall grass;near the well;"
         "behind the stone wall;under the apple tree;beside the path;inside a hollow tree;"
         "between two rocks").split(";")
WEATHER = ("The sun was shining and the sky was blue.;A soft wind was blowing.;"
           "It was a warm day and the birds were singing.;There were white clouds in the sky.;"
           "The morning was cold and bright.;The air smelled of rain.;"
           "The flowers were open and the bees were busy.;Mist lay over the fields.").split(";")


def an(word):
    return ("an " if word[:1] and word[0] in "aeiou" else "a ") + word


def cap(s):
    return s[0].upper() + s[1:]


class Who:
    """One character: a name, what it is, and the words that stand for it."""

    def __init__(self, name, kind, trait=None):
        self.name, self.kind, self.trait = name, kind, trait
        self.he, self.him, self.his = PRONOUN[name]

    @property
    def the(self):
        return "the " + self.kind

    @property
    def intro(self):
        return an((self.trait + " " if self.trait else "") + self.kind)


class Story:
    def __init__(self, rng):
        self.rng = rng
        self.lines = []       # sentences, in order
        self.asks = []        # (question variants, answer sentence)
        self.hero = self.friend = None
        self.place = None
        self.topic = ""

    def say(self, *variants):
        self.lines.append(self.rng.choice(variants))

    def maybe(self, p, *variants):
        if self.rng.random() < p:
            self.say(*variants)

    def ask(self, questions, answer):
        self.asks.append((questions, answer))

    @property
    def text(self):
        return " ".join(self.lines)


def _cast(rng, kind, name, avoid):
    free = [n for n in NAMES if n not in avoid]
    name = name or rng.choice(free)
    if kind is None:
        kind = rng.choice(ANIMALS) if rng.random() < 0.75 else ("girl" if name in GIRLS else "boy")
    return Who(name, kind, rng.choice(TRAITS))


def _open(s):
    h, r = s.hero, s.rng
    p = s.place
    where = r.choice([f"near the {p}", f"beside the {p}", f"in a small house by the {p}",
                      f"not far from the {p}"])
    k = r.randrange(5)
    if k == 0:
        s.say(f"Once upon a time, there was {h.intro} called {h.name}.",
              f"Once upon a time, there was {h.intro} named {h.name}.")
        s.say(f"{h.name} lived {where}.", f"{cap(h.he)} lived {where}.")
    elif k == 1:
        s.say(f"Once upon a time, {h.intro} called {h.name} lived {where}.",
              f"Once upon a time, {h.intro} named {h.name} lived {where}.")
    elif k == 2:
        s.say(f"Once there was {h.intro} who lived {where}.")
        s.say(f"{cap(h.his)} name was {h.name}.")
    elif k == 3:
        s.say(f"{h.name} was {h.intro} who lived {where}.",
              f"Long ago, {where}, there lived {h.intro} called {h.name}.")
    else:
        s.say(f"Once upon a time, {where}, there lived {h.intro}.")
        s.say(f"{cap(h.his)} name was {h.name}.", f"Everyone called {h.him} {h.name}.")
    s.ask((f"What was the name of the {h.kind}?", f"What was the {h.kind} called?",
           f"Who is the story about?"),
          r.choice((f"The {h.kind} was called {h.name}.", f"The name of the {h.kind} was {h.name}.")))
    s.ask((f"Where did {h.name} live?", f"Where did the {h.kind} live?"),
          f"{h.name} lived {where}.")
    s.maybe(0.35, f"{h.name} liked to play all day long.", f"{h.name} loved to sing in the morning.",
            f"{cap(h.he)} liked to walk in the sun and look at the flowers.",
            f"Every evening {h.he} looked at the stars.",
            f"{h.name} was happy most of the time.")


def _day(s):
    s.say(*(f"{d}, {s.hero.name} went to the {s.place2}." for d in
            ("One day", "One morning", "One sunny day", "One afternoon")),
          *(f"{d}, {s.hero.name} walked to the {s.place2}." for d in
            ("One day", "One fine morning", "One cold morning")))
    s.maybe(0.5, *WEATHER)


def _meet(s, verb="met"):
    h, f = s.hero, s.friend
    s.say(f"On the way {h.he} {verb} {f.intro} called {f.name}.",
          f"There {h.he} {verb} {f.intro} named {f.name}.",
          f"Soon {h.he} {verb} {f.name}, {f.intro}.",
          f"By a tree {h.he} {verb} {f.intro} called {f.name}.")
    s.ask((f"Who did {h.name} meet?", f"Who was {f.name}?"),
          f"{h.name} met {f.intro} called {f.name}.")


def _end(s, *morals):
    h, f = s.hero, s.friend
    k = s.rng.randrange(4)
    if k == 0:
        s.say(f"From that day on, {h.name} and {f.name} were the best of friends.",
              f"From then on, {h.name} and {f.name} played together every day.")
    elif k == 1:
        s.say(f"That night {h.name} went to sleep with a smile.",
              f"{h.name} walked home and felt warm inside.",
              f"That evening {h.name} told everyone at home about {f.name}.")
    elif k == 2:
        s.say(f"{h.name} and {f.name} laughed and danced until the sun went down.",
              f"Then {h.name} and {f.name} ate {s.food} together and told stories.")
    moral = s.rng.choice(morals)
    s.say(f"{h.name} had learned that {moral}.", f"And so {h.name} learned that {moral}.",
          f"Now {h.he} knew that {moral}.")
    s.ask((f"What did {h.name} learn?", f"What did the {h.kind} learn?",
           "What can we learn from the story?"),
          f"{h.name} learned that {moral}.")
    s.maybe(0.4, "They all lived happily ever after.", "The end.",
            "And everyone was happy.")


def lost(s):
    h, f, r = s.hero, s.friend, s.rng
    c, toy, spot = r.choice(COLOURS), s.toy or r.choice(TOYS), r.choice(SPOTS)
    s.say(f"{h.name} had {an(c)} {toy} that {h.he} loved very much.",
          f"The thing {h.he} loved most was {h.his} {c} {toy}.",
          f"{cap(h.his)} grandmother had given {h.him} {an(c)} {toy}.")
    s.ask((f"What colour was the {toy}?", f"What colour was {h.name}'s {toy}?"),
          f"The {toy} was {c}.")
    _day(s)
    s.say(f"{cap(h.he)} played with the {toy} until {h.he} was tired and fell asleep.",
          f"{cap(h.he)} put the {toy} down for a moment to look at a butterfly.",
          f"{cap(h.he)} ran and jumped and did not look after the {toy}.")
    s.say(f"When {h.he} looked again, the {toy} was gone.",
          f"Then {h.he} saw that the {c} {toy} was gone.")
    s.ask((f"What did {h.name} lose?", f"What was lost?"), f"{h.name} lost the {c} {toy}.")
    s.say(f"{h.name} was very sad and began to cry.",
          f"\"Oh no!\" cried {h.name}. \"Where is my {toy}?\"",
          f"{h.name} looked here and there, but {h.he} could not find it.")
    _meet(s)
    s.say(f"\"Why are you so sad?\" asked {f.name}.", f"\"What is wrong?\" asked {f.the}.")
    s.say(f"\"I lost my {c} {toy},\" said {h.name}.",
          f"\"My {toy} is gone,\" said {h.name}. \"It is {c}.\"")
    s.say(f"\"Do not worry,\" said {f.name}. \"I will help you.\"",
          f"\"Let us look for it together,\" said {f.name}.")
    s.maybe(0.5, f"They looked in the bushes, but it was not there.",
            f"They asked the birds, but the birds had not seen it.",
            "They looked behind every tree.")
    s.say(f"At last {f.name} found the {toy} {spot}.",
          f"Then {f.name} called, \"Here it is!\" The {toy} was {spot}.")
    s.ask((f"Where was the {toy}?", f"Where did they find the {toy}?", f"Where was the {c} {toy}?"),
          f"The {toy} was {spot}.")
    s.ask((f"Who found the {toy}?", f"Who helped {h.name}?"),
          f"{f.name} found the {toy}.")
    s.say(f"\"Thank you, {f.name}!\" said {h.name}.",
          f"{h.name} was so happy that {h.he} gave {f.him} a big hug.")
    _end(s, "a good friend helps when things go wrong", "two can look better than one",
         "we should look after the things we love")


def share(s):
    h, f, r = s.hero, s.friend, s.rng
    food = s.food
    _day(s)
    s.say(f"There {h.he} found a big basket of {food}.",
          f"Under a tree {h.he} found some {food}.",
          f"{cap(h.he)} had a bag full of {food} for lunch.")
    s.ask((f"What did {h.name} have to eat?", f"What food is in the story?"),
          f"{h.name} had some {food}.")
    s.say(f"\"These are all for me,\" said {h.name}." if food not in
          ("honey", "bread", "soup", "cake", "cheese", "corn") else f"\"This is all for me,\" said {h.name}.",
          f"{h.name} was hungry and wanted to eat it all.")
    _meet(s)
    s.say(f"{f.name} looked thin and hungry.", f"{cap(f.the)} had not eaten all day.")
    s.say(f"\"Please, may I have some {food}?\" asked {f.name}.",
          f"\"Could you give me a little of the {food}?\" asked {f.the}.")
    if r.random() < 0.6:
        s.say(f"\"No,\" said {h.name}. \"I found it first.\"",
              f"\"Go away,\" said {h.name}. \"There is not enough.\"")
        s.say(f"{f.name} walked away slowly.", f"{f.name} sat down under a tree and cried.")
        s.say(f"Then {h.name} did not feel good at all.",
              f"{h.name} began to eat, but the {food} did not taste good.")
        s.say(f"{cap(h.he)} ran after {f.name}. \"I am sorry,\" {h.he} said. \"Come and eat with me.\"",
              f"\"Wait!\" called {h.name}. \"I am sorry. Please eat with me.\"")
    else:
        s.say(f"{h.name} thought for a moment. Then {h.he} smiled.",
              f"{h.name} looked at {f.name} and felt sorry for {f.him}.")
        s.say(f"\"Of course,\" said {h.name}. \"There is enough for two.\"",
              f"\"Sit down with me,\" said {h.name}. \"We can share.\"")
    s.say(f"They sat in the grass and shared the {food}.",
          f"So {h.name} gave half of the {food} to {f.name}.")
    s.ask((f"Who did {h.name} share with?", f"Who was hungry?"),
          f"{f.name} was hungry, and {h.name} shared the {food}.")
    s.maybe(0.5, f"It tasted better than ever before.", f"They talked and laughed for a long time.")
    _end(s, "food tastes better when we share it", "sharing makes two hearts glad",
         "it is good to share with others")


def rescue(s):
    h, f, r = s.hero, s.friend, s.rng
    trouble, tool, act = r.choice((
        ("stuck in the mud", "rope", "pulled and pulled"), ("stuck in the mud", "branch", "pulled hard"),
        ("high up in a tree", "ladder", "climbed up slowly"), ("in a deep hole", "rope", "pulled with all {his} strength"),
        ("caught in a net", "knife", "cut the net"), ("on a rock in the water", "boat", "rowed across the water"),
        ("in a deep hole", "ladder", "put it down into the hole")))
    act = act.format(his=h.his)
    _day(s)
    s.say(f"Suddenly {h.he} heard a voice. \"Help! Help!\"",
          f"Then {h.he} heard someone cry for help.")
    s.say(f"It was {f.name}, {f.intro}, who was {trouble}.",
          f"{h.name} ran to look and saw {f.intro} {trouble}. It was {f.name}.")
    s.ask((f"Who needed help?", f"Who did {h.name} help?"), f"{f.name} needed help.")
    s.ask((f"Where was {f.name}?", f"What happened to {f.name}?"), f"{f.name} was {trouble}.")
    s.say(f"\"Do not be afraid,\" said {h.name}. \"I will help you.\"",
          f"\"Wait there!\" called {h.name}. \"I will come back soon.\"")
    s.say(f"{h.name} ran home and came back with a {tool}.",
          f"{cap(h.he)} looked around and found a {tool}.")
    s.ask((f"What did {h.name} use to help {f.name}?", f"How did {h.name} help {f.name}?"),
          f"{h.name} used a {tool}.")
    s.maybe(0.5, "It was hard work.", f"{cap(h.he)} was a little afraid, but {h.he} did not stop.")
    s.say(f"{cap(h.he)} {act}, and at last {f.name} was free.",
          f"{h.name} took the {tool} and {act}. Soon {f.name} was safe.")
    s.say(f"\"Thank you!\" said {f.name}. \"You saved me.\"",
          f"\"You are very brave,\" said {f.name}.")
    s.maybe(0.6, f"{f.name} gave {h.him} some {s.food} to say thank you.",
            f"{f.name} was wet and cold, so they made a fire.")
    _end(s, "even the small can be brave", "helping others makes us strong",
         "it is good to help when someone is in trouble")


FEARS = (("the dark", "light a small lamp", "The dark was full of stars"),
         ("the water", "put one foot in first", "The water was cool and clear"),
         ("high places", "look up and not down", "The world looked wide and beautiful"),
         ("thunder", "count and sing a song", "The thunder was only a big drum in the sky"),
         ("strangers", "smile and say hello", "The strangers smiled back"))


def fear(s):
    h, f, r = s.hero, s.friend, s.rng
    what, advice, seen = r.choice(FEARS)
    s.say(f"{h.name} was afraid of {what}.", f"But {h.name} had one problem. {cap(h.he)} was afraid of {what}.")
    s.ask((f"What was {h.name} afraid of?", f"What was the {h.kind} afraid of?"),
          f"{h.name} was afraid of {what}.")
    s.say(f"The others laughed at {h.him}, and {h.he} felt alone.",
          f"When {h.his} friends went out to play, {h.he} stayed at home.")
    _day(s)
    f.trait = "wise old"
    _meet(s)
    s.say(f"\"Why do you look so sad?\" asked {f.name}.", f"\"What is the matter?\" asked {f.the}.")
    s.say(f"\"I am afraid of {what},\" said {h.name}.",
          f"\"Everyone laughs at me,\" said {h.name}, \"because I am afraid of {what}.\"")
    s.say(f"\"I was afraid too when I was young,\" said {f.name}.",
          f"{f.name} did not laugh. \"Everyone is afraid of something,\" {f.he} said.")
    s.say(f"\"Next time, {advice}.\"", f"\"You must {advice}. Then you will see.\"")
    s.ask((f"What did {f.name} say?", f"Who gave {h.name} advice?"),
          f"{f.name} told {h.name} to {advice}.")
    s.say(f"That evening {h.name} wanted to try.", f"The next day {h.name} took a deep breath and tried.")
    s.say(f"At first {h.his} heart beat fast.", f"{cap(h.his)} legs were shaking.")
    s.say(f"But {h.he} remembered what {f.name} had said.")
    s.say(f"{seen}.", f"{seen}, and it was not so bad.")
    s.say(f"\"I did it!\" cried {h.name}.", f"{h.name} was not afraid any more.")
    _end(s, "being brave means trying when we are afraid", "a small step is enough to begin",
         "we are braver than we think")


SKILLS = (("swim", "swam across the pond"), ("sing", "sang a beautiful song"),
          ("dance", "danced in front of everyone"), ("paint", "painted a big picture"),
          ("bake bread", "baked the best bread in the village"), ("climb trees", "climbed the tallest tree"),
          ("play the drum", "played the drum at the feast"), ("read", "read a whole book"))


def learn(s):
    h, f, r = s.hero, s.friend, s.rng
    skill, done = r.choice(SKILLS)
    s.say(f"{h.name} wanted to learn to {skill}.", f"More than anything, {h.he} wished to {skill}.")
    s.ask((f"What did {h.name} want to learn?", f"What did {h.name} wish to do?"),
          f"{h.name} wanted to {skill}.")
    s.say(f"{cap(h.he)} tried and tried, but it did not work.",
          f"The first time {h.he} tried, everyone laughed.")
    s.maybe(0.5, f"\"I will never learn it,\" said {h.name}.", f"{h.name} wanted to give up.")
    _day(s)
    _meet(s)
    s.say(f"{f.name} was very good at it.", f"{f.name} saw that {h.he} was sad.")
    s.say(f"\"Can you teach me to {skill}?\" asked {h.name}.",
          f"\"I want to {skill}, but I can not,\" said {h.name}.")
    s.say(f"\"Yes,\" said {f.name}. \"But you must practise every day.\"",
          f"\"I will show you,\" said {f.the}. \"We will start slowly.\"")
    s.ask((f"Who helped {h.name}?", f"Who taught {h.name}?"), f"{f.name} taught {h.name} to {skill}.")
    s.say(f"So {h.name} practised in the morning and in the evening.",
          f"Every day they met at the {s.place2} and worked hard.")
    s.maybe(0.6, f"Some days were good and some days were bad.", "Slowly it became easier.")
    s.say(f"When summer came, {h.name} {done}.", f"After many weeks, {h.name} {done}.",
          f"One day {h.name} {done}, and {f.name} clapped {f.his} hands.")
    s.say(f"\"Well done!\" said {f.name}.", f"Everyone was surprised, and {h.name} was proud.")
    _end(s, "practice makes us better", "we should not give up", "great things take time")


def race(s):
    h, f, r = s.hero, s.friend, s.rng
    fast = r.choice(("I am the fastest of all", "No one can run as fast as I can"))
    f.trait = "proud"
    s.say(f"{h.name} had a neighbour, {f.intro} called {f.name}.",
          f"Next to {h.him} lived {f.intro} named {f.name}.")
    s.ask((f"Who was proud?", f"Who was {h.name}'s neighbour?"), f"{f.name} the {f.kind} was the proud neighbour.")
    s.say(f"\"{fast},\" said {f.name} every day.", f"\"{fast}!\" {f.name} liked to say.")
    s.say(f"\"Let us have a race to the {s.place2},\" said {h.name}.",
          f"One day {h.name} said, \"Let us race to the {s.place2}.\"")
    s.ask(("Where did they race to?", "Where did the race end?"), f"They raced to the {s.place2}.")
    s.say(f"{f.name} laughed. \"You will never win,\" {f.he} said.", f"{f.name} only laughed.")
    s.say("All the animals came to watch.", "The next morning everyone came to see the race.")
    s.say(f"{f.name} ran ahead as fast as the wind.", f"At first {f.name} was far ahead.")
    why = r.choice((f"stopped to sleep under a tree", f"stopped to eat {s.food}", "stopped to look at himself in the water"
                    if f.he == "he" else "stopped to look at herself in the water"))
    s.say(f"But then {f.he} {why}.", f"\"I have time,\" said {f.name}, and {f.he} {why}.")
    s.say(f"{h.name} was slow, but {h.he} did not stop.", f"{h.name} walked on, step by step.")
    s.say(f"When {f.name} looked up, {h.name} was already there.",
          f"{f.name} ran and ran, but it was too late.")
    s.say(f"{h.name} had won the race!", f"\"{h.name} has won!\" called the animals.")
    s.ask(("Who won the race?",), f"{h.name} won the race.")
    s.ask((f"Why did {f.name} lose?", f"What did {f.name} do?"), f"{f.name} {why}.")
    s.say(f"\"I am sorry that I laughed at you,\" said {f.name}.",
          f"{f.name} was quiet for a while. Then {f.he} shook {h.his} hand.")
    _end(s, "slow and steady wins the race", "it is not good to be proud", "we win when we do not stop")


def newcomer(s):
    h, f, r = s.hero, s.friend, s.rng
    game = r.choice(("hide and seek", "with a ball", "in the leaves", "by the water", "in the snow"))
    s.say(f"One day {f.intro} called {f.name} came to the {s.place}.",
          f"One morning a new neighbour came. It was {f.intro} named {f.name}.")
    s.ask((f"Who was new?", "Who came to live there?"), f"{f.name} the {f.kind} was new.")
    s.say(f"{f.name} did not know anyone and sat all alone.", f"{f.name} was shy and did not say a word.")
    s.say(f"The others did not want to play with {f.him}.", f"The others only looked and whispered.")
    s.maybe(0.5, *WEATHER)
    s.say(f"{h.name} saw {f.him} and thought, \"I would be sad too.\"",
          f"{h.name} felt sorry for {f.him}.")
    s.say(f"{cap(h.he)} took some {s.food} and went to say hello.",
          f"So {h.he} went over with some {s.food}.")
    s.ask((f"What did {h.name} bring?", f"What did {h.name} take to {f.name}?"), f"{h.name} brought some {s.food}.")
    s.say(f"\"Hello, my name is {h.name},\" {h.he} said. \"Do you want to play?\"",
          f"\"Hello! I am {h.name}. Would you like to play with me?\"")
    s.say(f"{f.name} looked up and smiled. \"Yes, please!\"", f"\"I would love to,\" said {f.name}.")
    s.say(f"They played {game} all afternoon.", f"Soon they played {game} and laughed.")
    s.ask(("What did they play?", "Where did they play?"), f"They played {game}.")
    s.maybe(0.7, f"The others saw how much fun it was, and they came to play too.",
            f"{f.name} knew many good games and shared them all.")
    _end(s, "a kind word can make a new friend", "it is good to welcome others",
         "a friend may be only one hello away")


def gift(s):
    h, f, r = s.hero, s.friend, s.rng
    c, toy = r.choice(COLOURS), s.toy or r.choice(TOYS)
    s.say(f"{h.name} had a good friend, {f.intro} called {f.name}.",
          f"{cap(h.his)} best friend was {f.intro} named {f.name}.")
    s.ask((f"Who was {h.name}'s friend?",), f"{f.name} the {f.kind} was the friend of {h.name}.")
    s.say(f"Soon it was {f.name}'s birthday, and {h.name} wanted to make a gift.",
          f"\"Tomorrow is {f.name}'s birthday,\" thought {h.name}. \"I need a gift.\"")
    s.say(f"But {h.name} had no money.", f"{cap(h.he)} looked at home, but found nothing.")
    _day(s)
    s.say(f"There {h.he} found some old wood and an idea came to {h.him}.",
          f"There an old man gave {h.him} some wood and a pot of paint.")
    s.say(f"{h.name} worked all night and made {an(c)} {toy}.",
          f"{cap(h.he)} made a {toy} and painted it {c}.")
    s.ask((f"What did {h.name} make?", f"What was the gift?", f"What did {f.name} get?"), f"{h.name} made {an(c)} {toy}.")
    s.say(f"In the morning {h.he} put it in a box and went to {f.name}.",
          f"The next day {h.he} took it to {f.name}.")
    s.say(f"{f.name} opened the box with big eyes.", f"\"Is this for me?\" asked {f.name}.")
    s.say(f"\"It is the most beautiful {toy} in the world!\" {f.he} said.",
          f"\"You made this?\" said {f.name}. \"I love it!\"")
    s.maybe(0.6, f"Then they ate {s.food} and sang songs.", f"All the friends came and there was {r.choice(('cake', 'music', 'soup'))} for everyone.")
    _end(s, "a gift made with love is the best gift", "love matters more than money")


def noise(s):
    h, f, r = s.hero, s.friend, s.rng
    sound = r.choice(("a strange noise", "a soft knock", "a sad little song", "a long howl"))
    trouble = r.choice(("had lost the way home", "had hurt a leg", "was cold and wet", "could not sleep"))
    s.say(f"One night {h.name} woke up, because there was {sound} outside.",
          f"One night, when the moon was high, {h.name} heard {sound}.")
    s.ask((f"What did {h.name} hear?",), f"{h.name} heard {sound}.")
    s.say(f"\"Who is there?\" {h.he} called, but no one answered.", f"{cap(h.he)} hid under the blanket.")
    s.say(f"Then {h.name} took a lamp and opened the door.", f"At last {h.he} took a lamp and went out.")
    s.say(f"{cap(h.he)} followed the sound to the {s.place2}.", f"The sound came from the {s.place2}.")
    s.say(f"And what did {h.he} see? It was only {f.intro} called {f.name}.",
          f"There sat {f.intro} named {f.name}, small and alone.")
    s.ask(("Who made the noise?", f"Who was outside?"), f"It was {f.name}, {f.intro}.")
    s.say(f"{f.name} {trouble}.", f"\"Please help me,\" said {f.name}, who {trouble}.")
    s.ask((f"What was wrong with {f.name}?",), f"{f.name} {trouble}.")
    s.say(f"\"Come with me,\" said {h.name}. \"My house is warm.\"", f"\"Do not cry,\" said {h.name}. \"You can stay with me.\"")
    s.say(f"{cap(h.he)} gave {f.him} {s.food} and a soft bed.", f"They sat by the fire and ate some {s.food}.")
    s.say(f"In the morning {h.name} took {f.name} home.", f"When the sun came up, {f.name} felt much better.")
    _end(s, "not everything strange is bad", "we should look before we are afraid",
         "a warm house is best when we share it")


def build(s):
    h, f, r = s.hero, s.friend, s.rng
    thing = r.choice(("bridge", "house", "boat", "raft", "tower", "wall"))
    first, second = r.sample(("straw", "leaves", "wood", "stone", "clay"), 2)
    s.say(f"{h.name} wanted to build a {thing} near the {s.place2}.",
          f"One day {h.he} had an idea. \"I will build a {thing},\" {h.he} said.")
    s.ask((f"What did {h.name} build?", f"What did {h.name} want to build?"), f"{h.name} wanted to build a {thing}.")
    s.say(f"{cap(h.he)} took {first} and worked alone all day.", f"First {h.he} built it with {first}.")
    s.say(f"But at night a storm came and the {thing} broke.", f"Then the wind blew hard, and the {thing} fell down.")
    s.say(f"{h.name} sat down and cried.", f"\"All my work is gone,\" said {h.name}.")
    _meet(s)
    s.say(f"\"Use {second},\" said {f.name}. \"It is better than {first}.\"",
          f"\"We can try again with {second},\" said {f.name}.")
    s.ask((f"What was the {thing} made of?", f"What did they use the second time?"), f"The second time they used {second}.")
    s.say(f"Together they worked for three days.", f"{f.name} carried the {second}, and {h.name} put it in place.")
    s.say(f"When the next storm came, the {thing} did not break.", f"This time the {thing} was strong.")
    s.maybe(0.6, f"\"Look what we have made!\" said {h.name}.", f"They sat in the sun and ate {s.food}.")
    _end(s, "many hands make light work", "it is better to work together", "we can always try again")


def seed(s):
    h, f, r = s.hero, s.friend, s.rng
    c = r.choice(COLOURS)
    plant = r.choice(("flower", "tree", "rose", "sunflower", "plant"))
    s.say(f"One spring day {h.name} found a tiny seed.", f"One day a bird dropped a seed in front of {h.name}.")
    s.say(f"{cap(h.he)} put it in the ground near the {s.place2}.", f"{cap(h.he)} planted it near the {s.place2}.")
    s.ask((f"Where did {h.name} plant the seed?",), f"{h.name} planted the seed near the {s.place2}.")
    s.say(f"Every day {h.he} gave it water, but nothing happened.", f"{cap(h.he)} waited and waited, but there was nothing to see.")
    s.say(f"{f.name}, {f.intro}, laughed. \"It will never grow,\" {f.he} said.",
          f"\"Why do you wait?\" asked {f.name}, {f.intro}. \"It is only a seed.\"")
    s.ask((f"Who laughed at {h.name}?", f"Who was {f.name}?"), f"{f.name} was {f.intro}.")
    s.say(f"\"It needs time,\" said {h.name}.", f"But {h.name} did not give up.")
    s.say(f"Then the rain came, and after the rain the sun.", "Days went by, and the days became weeks.")
    s.say(f"One morning there was a small green leaf.", "And one day something green came out of the ground.")
    s.say(f"It grew and grew, until it was a beautiful {c} {plant}." if plant != "tree" else f"It grew and grew, until it was a tall tree with {c} leaves.")
    s.ask((f"What colour was it?", "What did the seed become?"), f"It became a {plant}, and it was {c}." if plant != "tree" else f"It became a tree with {c} leaves.")
    s.say(f"\"You were right,\" said {f.name}. \"I am sorry.\"", f"{f.name} came to see it and could not believe {f.his} eyes.")
    _end(s, "good things need time", "those who wait and work will see flowers")


def truth(s):
    h, f, r = s.hero, s.friend, s.rng
    c = r.choice(COLOURS)
    thing = r.choice(("vase", "window", "cup", "plate", "clock", "lamp"))
    f.trait = r.choice(("old", "kind", "gentle"))
    s.say(f"Next door lived {f.intro} called {f.name}.", f"{cap(h.his)} neighbour was {f.intro} named {f.name}.")
    s.say(f"{f.name} had {an(c)} {thing} that was very old.", f"In the house of {f.name} there was {an(c)} {thing}.")
    s.ask((f"What colour was the {thing}?",), f"The {thing} was {c}.")
    s.say(f"One day {h.name} was playing with a ball, and the {thing} broke.",
          f"One afternoon {h.name} ran too fast and broke the {thing}.")
    s.ask((f"What did {h.name} break?", "What broke?"), f"{h.name} broke the {c} {thing}.")
    s.say("No one had seen it.", f"{h.name} looked around. No one was there.")
    s.say(f"\"I could run away,\" thought {h.name}.", f"\"I could say it was the wind,\" {h.he} thought.")
    s.say(f"But {h.his} heart was heavy, and {h.he} could not eat.", f"That night {h.he} could not sleep.")
    s.say(f"In the morning {h.he} went to {f.name}. \"I broke your {thing},\" {h.he} said. \"I am sorry.\"",
          f"So {h.name} went to {f.name} and told {f.him} everything.")
    s.say(f"{f.name} was quiet for a moment. Then {f.he} smiled.", f"{f.name} looked at {h.him} for a long time.")
    s.say(f"\"Thank you for telling me the truth,\" said {f.name}.", f"\"A {thing} is only a thing,\" said {f.name}. \"The truth is worth more.\"")
    s.maybe(0.7, f"Together they glued the {thing}.", f"Then they drank tea and ate {s.food}.")
    _end(s, "it is best to tell the truth", "the truth makes the heart light")


PLOTS = {"lost": (lost, ("losing something", "a lost {toy}", "looking for a lost {toy}")),
         "share": (share, ("sharing", "sharing {food}", "being hungry")),
         "rescue": (rescue, ("helping others", "a rescue", "saving a friend")),
         "fear": (fear, ("being brave", "being afraid", "fear")),
         "learn": (learn, ("learning something new", "not giving up", "practice")),
         "race": (race, ("a race", "being proud")),
         "newcomer": (newcomer, ("a new friend", "making friends", "friendship", "being kind")),
         "gift": (gift, ("a birthday", "a gift", "a birthday gift")),
         "noise": (noise, ("a strange noise", "the night", "a noise in the night")),
         "build": (build, ("building something", "working together", "a storm")),
         "seed": (seed, ("a seed", "a garden", "a flower", "waiting")),
         "truth": (truth, ("telling the truth", "a mistake", "being honest"))}


def tell(rng, kind=None, name=None, plot=None, place=None, toy=None, food=None, trait=None, avoid=()):
    s = Story(rng)
    avoid = set(avoid)
    s.hero = _cast(rng, kind, name, avoid)
    if trait:
        s.hero.trait = trait
    avoid.add(s.hero.name)
    s.friend = _cast(rng, None, None, avoid)
    while s.friend.kind == s.hero.kind:
        s.friend = _cast(rng, None, None, avoid)
    s.place, s.place2 = rng.sample(PLACES, 2)
    if place:
        s.place = place
        s.place2 = rng.choice([p for p in PLACES if p != place])
    s.toy, s.food = toy, food or rng.choice(FOODS)
    s.plot = plot or rng.choice(list(PLOTS))
    _open(s)
    PLOTS[s.plot][0](s)
    return s
