"""Refusals and deflections: three of the rules listed in rules.RULES, and the patterns by which they know them."""

# ruff: noqa: RUF001

import re

from pipeline.answers import SENTENCE_END, VOICE, Answer, compiled, content, hint, joined, quoted, sentences
from pipeline.recipe import Filter

# --- Refusals ---------------------------------------------------------------------------------------------------------

# A text in the first person that is nobody's letter or story.
_FIRST_PERSON = re.compile(
    r"\b(?:first person|affirmations?|mantras?|resolutions?|vows?|oath|pledge|manifesto|toast|prayer|reviews?|bio|"
    r"profile|testimonials?|tweets?|posts?|captions?|slogans?|personal statement|memoir|confession|riddles?|excuses?|"
    r"interview|out-of-office|voicemail|i statements?|finish the|complete the)\b",
    re.I,
)
# A text to carry over: what it says is not what the teacher says.
_CARRIES_OVER = compiled(
    r"""
    \b(?:translat\w+|rewrite|rephrase|paraphrase|proofread|correct|how do (?:you|i) say|say in|phrases?)\b
    |\b(?:übersetz\w*|auf deutsch|tradu[zcitr]\w*|dit-on|se dice|vertaal\w*|перевед\w*|przetłumacz\w*)
    |翻[译訳譯]|번역
    """,
    re.I,
)

_VERB = joined(
    r"""
    (?:assist|help(?! it\b| but\b)|provide|fulfil+|comply|answer|create|generate|write|engage|support|share|offer
        |discuss
        |do (?:that|this|so|it)\b|participate|promote|encourage|give (?:you|any|advice|instructions|personal|out
        |legal|medical|information|specific|an?|the|step)|suggest|recommend (?:a|any|specific)|teach|explain
        |produce|reproduce|disclose|reveal|advise|condone|endorse|facilitate|make (?:jokes|that|this|fun
        |predictions?|(?:\w+ )?(?:judge?ments?|assumptions|generali[sz]ations))
        |tell you (?!how (?:much|happy|sorry|glad|grateful))|describe (?:how|the)|continue with
        |proceed|translate|respond|guide|draft|walk you|go there|complete (?:this|that|your)|accommodate|access|browse
        |open (?:web|links?|urls?|files?|the link)|view|predict|diagnose|prescribe|impersonate|imitate|mock|go into
        |grant
        |process (?:that|this|your)|show you|instruct|list\b|be (?:able|of|writing|helping|providing|part)
        |in good conscience|go along|entertain|express|have (?:personal )?opinions)
    """
)
_ADVERB = joined(
    r"""
    (?:(?:really|simply|also|personally|therefore|absolutely|just|actually|directly|ethically|legally
        |in good conscience|knowingly|morally|responsibly|fully|currently|definitely|possibly|help to) )*
    """
)
_CANNOT = r"(?:can't|cannot|can not|won't|will not|wouldn't|would not|couldn't|could not|shouldn't|may not|must not)"

_NOT_WITH = r"\bi can help (?:you )?with [^.!?\n]{1,120}, but not with\b"

# What an assistant that answers all the same may say that it has not or gives not.
_DISCLAIMS = compiled(
    r"""
    (?:(?!personali[sz]ed|specific)[^.!?]){0,80}?\b(?:opinions?|beliefs?|feelings|preferences|assumptions
        |generali[sz]ations|(?:medical|legal|financial|investment|tax|professional|personal) (?:or \w+ )?(?:advice
        |views?|guidance|judge?ments?))\b
    """
)
# What an assistant says when it refuses, as a clause of its own.
_REFUSES = compiled(
    rf"""
    \bi {_ADVERB}{_CANNOT} (?:and (?:will not|won't|cannot|can't|would not|should not) )?{_ADVERB}{_VERB}
    |\bi(?:'m| am) (?:\w+ )?(?:unable|not able|not going|not allowed|not permitted|not authori[sz]ed|not willing
        |unwilling|not in a position|not equipped|not programmed|not designed) to (?!confirm that all)
    |\bi(?:'m| am) (?:\w+ )?(?:not comfortable|uncomfortable|prohibited from|not capable of)\b
    |\bi(?:'m| am) not an? \w+ and (?:therefore )?(?:can't|cannot)\b
    |\bi(?:'m| am) afraid (?:i|that i|that's|this|that is|it's|it is|we)\b
    |\bi(?:'m| am) (?:programmed to(?! adhere)|going to have to (?:decline|pass|say no|refuse))
    |\bi(?:'ll| will| must| have to| need to| should| would|'d| am going to) (?:\w+ )?(?:decline|refuse|refrain
        |say no)\b
    |\bi (?:respectfully |politely |must )?(?:decline|refuse) (?:to|this|that|your)\b
    |\bi(?:'d| would)? (?:rather|prefer) not\b
    |\bi(?:'m| am) choosing not to\b
    |\bi(?:'m| am) not (?:qualified|prepared|the right|up for|doing (?:that|this|it))\b
    |\bi(?:'m| am| will be|'ll be) (?:\w+ )?(?:going to (?:pass|skip)|passing on|declining|refusing)\b
    |\bi(?:'ll| will) (?:have to )?(?:pass on (?:this|that)|stay out of|leave (?:that|this|it|which|the \w+) to you)\b
    |\b(?:i(?:'ll| will| must| have to| need to| should| would|'d)|have to|going to) (?:\w+ ){{0,3}}(?:say no
        |turn (?:this|that|it|you) (?:\w+ )?down|turn down|refuse|leave \w+ unanswered)\b
    |\bi (?:won't|will not|refuse to|'m not going to)(?! (?:lie\b|pretend|sugar|bore|spoil|keep you|go on|deny|forget
        |say more|say much|repeat)) \w+
    |\bi (?:won't|will not|refuse)(?=[.,;!]|$)
    |\b(?:i (?:must|have to|need to)|and) (?:\w+ )?refuse\b
    |\bi (?:do not|don't) (?:share|provide|assist|create|write|give out|produce|generate|take (?:sides|part)|rank|list
        |make (?:jokes|fun)|help (?:with|people|anyone))\b
    |\bi (?:am [^.!?,]{{1,60}} and )?(?:do not|don't) have the (?:capability|capacity|ability) to (?:\w+ )?(?:provide
        |assist|help|create|generate|give|answer|engage|support)\b
    |\b(?:not|n't) (?:\w+ )?(?:appropriate|safe|ethical|responsible|right)(?: (?:or|and) \w+)?(?: for me)? to (?:\w+ )?
        (?:provide|give|share|offer)(?: \w+){{1,3}} (?:on|for|about) (?:how to|ways)\b
    |\bi (?:do not|don't) (?:want|wish) to (?:help|write|create|provide|assist|do (?:this|that))
    |\b(?:\w+n't|not|never) (?:something|anything|an? (?:[\w-]+ ){{1,2}}?|one|ones|the kind of \w+) ?(?:that |which )?
        i(?:'m|'ll|'d| am| can| could| will| would| do| should)\b
    |\b(?:something|anything|thing|topics?|requests?|questions?|part|ones?|content|parts?) (?:that |which )?i
        (?: (?:can't|cannot|can not|won't|will not|don't|do not|shouldn't|should not|must (?:leave|decline|refuse|not)
        |have to (?:decline|refuse|turn)|refuse|wouldn't|would not|am not|am unable)|'m not|'m unable|'d rather not)\b
    |\bwhat i (?:can't|cannot|won't|will not) (?:do|write|give|offer|provide)\b
    |\bwhich i (?:have to|must) (?:refuse|decline)\b
    |\b(?:is|are|'s) (?:off the table|where i draw the line|not my thing|not up for discussion)\b
    |\baren't (?:my thing|something)\b
    |\bwhere i draw the line\b
    |\b(?:sorry|apologies),? (?:but )?no\b
    |\bno can do\b
    |\blet's not go there\b
    |\bmy answer (?:has to be|is|must be) no\b
    |\bbut not with (?:this|that)\b
    |{_NOT_WITH}
    |\b(?:would be|is) wrong of me to\b
    |\bno way for me to (?:provide|share|give|tell)\b
    |\bgoes? (?:beyond|against) what i\b
    |\bi try to stay neutral\b
    |\bi can only offer\b
    |\bi (?:do not|don't) feel (?:right |\w+ )?(?:comfortable|able)
    |\bi would not be (?:comfortable|able)
    |\bi (?:do not|don't) (?:have the (?:ability|capability|capacity)|support|condone|promote|engage in|provide
        |assist|encourage)\b
    |\b(?<!that )i am [^.!?,]{{0,40}}\b(?:ai|model|assistant|chatbot)\b[^.!?,]{{0,20}} and (?:do not|don't) (?:support
        |condone|promote|engage in|encourage)\b
    |\b(?:that's|that is|this is|it's|it is|which is) (?:not )?(?:something|a (?:topic|request
        |subject)) (?:that )?i (?:can(?:'t|not)?|am|'m|won't|will|do|don't)\b
    |\b(?:outside|beyond) (?:of )?(?:what i(?:'m| am| can)?|my (?:scope|abilit|capabilit|programming|expertise))
    |\bagainst (?:my|openai's|anthropic's|the) (?:\w+ )?(?:programming|guidelines?|polic(?:y|ies)|principles
        |values|content policy|ethics)
    |\bmy (?:\w+ ){{0,2}}(?:guidelines|programming|polic(?:y|ies)|training|principles) (?:\w+ )?(?:prevents?
        |prohibits?|forbids?|do(?:es)? not (?:allow|permit)|don't (?:allow|permit))
    |\bnot within my (?:programming|capabilit|abilit|guidelines)
    |\bviolat(?:e|es|ing) (?:my|our|openai's|the (?:usage|content)|ethical)
    """
)
# What refusals say too, and advice as well: it counts only where no answer follows and the prompt does not ask for it.
_DISAPPROVES = compiled(
    r"""
    \b(?:i (?:do not|don't) (?:think|believe) (?:it|that|this) (?:would be|is|'s) (?:right|appropriate|ethical
            |okay|ok|good)[ ]
        |(?:it's|it is|it would be|this is|that is|that's|would be) (?:not |never |highly |both[ ]
            |also )*(?:(?P<custom>appropriate|inappropriate|ethical|unethical|acceptable|irresponsible)
            |within my|against my|illegal for me|wrong for me)(?: (?:or|and) \w+)?(?: for me)?(?: or \w+)?[ ]
            (?:to|programming|guidelines|policy)
        |(?:violence|abuse|assault|harassment|discrimination|(?:hurt|harm|kill|threaten|steal)ing)(?: \w+){0,4}[ ]
            (?:is|are) never\b
        |i (?:must|have to|need to) (?:\w+ )?(?:inform|remind|point out|emphasi[sz]e|stress|tell|advise|clarify)\b
        |i (?:would |'d |must )?(?:strongly |highly )?(?:advise|urge|caution) (?:you )?against\b
        |i strongly (?:advise|urge|discourage|encourage))
    |^(?:it's|it is) (?:\w+ ){0,2}(?:illegal|immoral|a crime)(?:,? (?:and|or) (?:\w+ )?\w+)? to\b
    """
)
_ASKS_JUDGEMENT = re.compile(
    r"\b(?:should|ethic\w*|appropriate|acceptable|rude|(?:im)?polite|proper|(?:un)?fair|etiquette|manners|taboo|legal|illegal|allowed|forbidden|prohibited|banned|safe|okay|ok|right|wrong|moral|advi[cs]e|recommend\w*)\b",
    re.I,
)
# These ask for reasons, not for a judgement.
_LOADED = re.compile(r"^\W*why (?:should|shouldn't|is it (?:right|okay|best))\b", re.I)
# Verdicts on these are on the question, not on a custom.
_TALKS = re.compile(
    r" (?:\w+ or )?(?:discuss|promote|encourage|celebrate|glorify|condone"
    r"|(?:consider|ask|answer|think about|engage in) (?:such|questions? (?:like|such)))\b"
)
# What begins a lecture in place of an answer. It is one where the prompt asks how to do something, and hardly anything
# follows that does not admonish.
_LECTURES = compiled(
    r"""
    \b(?:i (?:am [^.!?,]{1,60} and )?(?:do not|don't) (?:condone|promote|support|encourage|endorse)\b
        |i am [^.!?,]{1,60} and (?:do not|don't) have the (?:ability|capability|capacity) to\b
        |(?:it is|it's) (?:\w+ )?(?:important|crucial|essential|worth|vital) (?:to|noting)(?: \w+){0,3}? that
            [ ][^.!?]{0,160}?\b(?:illegal|unethical|immoral|against the law|a crime|(?:never|not) (?:an? )?(?:\w+ or )?
            (?:acceptable|appropriate|ethical|okay|ok|right|justified))\b
        |(?:is|was)(?: not|n't) an? (?:\w+ )?(?:appropriate|acceptable|respectful)[ ]
            (?:question|request|topic|statement)\b
        |the (?:\w+ ){1,2}way to [^.!?]{1,60} is (?:not to|to not|to never|to avoid)\b)
    |^there (?:is|are) no (?:\w+ ){0,3}?(?:ways?|steps?|means|methods?|places?)\b
    |^(?:it is|it's) not (?:\w+ or )?(?:ethical|moral|humane)(?: or \w+)? to\b
    |^(?:i'm |i am )?sorry,? but [^.!?]{1,80} (?:is|are)(?: not|n't) (?:an? )?(?:\w+ )?(?:safe|ethical|appropriate
        |acceptable)\b
    |^[^.!?]{1,100} (?:is|are) (?:\w+ )?(?:illegal|unethical|immoral|against the law|a (?:serious )?crime
        |never (?:acceptable|appropriate|ethical|okay|ok|right|justified|the answer))\b
    """
)
_ASKS_HOW = re.compile(
    r"\b(?:how|where|what (?:can|should|could) i do|ways?|steps?|tips|methods?|best|teach me|help me|show me)\b", re.I
)
_ADMONISHES = compiled(
    r"""
    \b(?:illegal|unethical|immoral|crimes?|criminal|harm\w*|violen\w+|abus\w+|respect\w*|dignity|rights|safety
        |consequences|acceptable|unacceptable|appropriate|inappropriate|consent|well-?being|responsib\w+|condone
        |professional help|authorities|peaceful\w*|ethical\w*|morals?)\b
    """
)
# What a refusal may say before the point.
_OPENING = joined(
    r"""
    ^\W*(?:(?:no|i'm sorry|i am sorry|sorry|i apologi[sz]e|unfortunately|i understand [^.!?]{1,100}?
        |i am an? [^.,]{1,60}|i am not an? [^.,]{1,60}|as an? [^.,]{1,60})[,.;]? )?(?:(?:but|and) )?
    (?:i (?:must|have to|need to|can|want to|would like to|just want to) (?:\w+ )?(?:tell|inform|say|point out|note
        |emphasi[sz]e|remind|clarify|stress|let)(?: you| know){0,2}(?: that)? |(?:it is|it's) (?:\w+ )?important to[ ]
        (?:note|remember|understand|recogni[sz]e|acknowledge) that )?
    """
)
# A moral verdict on an act: "it is neither right nor ethical to", "I don't think it's appropriate to".
_UNFIT = joined(
    r"""
    (?:(?:(?:it|this|that)(?:(?: is|'s| would be)(?: also| simply| just)? (?:not|never|neither)| isn't)
            |i(?:'m| am) not sure (?:that )?it(?: is|'s| would be)
            |i (?:do not|don't) (?:think|believe) (?:that )?it(?: is|'s| would be))
            (?: (?!necessar|usual|normal|general)\w+ly)? (?:\w+ (?:or|nor|and) )?
            (?:appropriate|ethical|acceptable|respectful|moral|responsible|humane|okay|ok)
        |(?:it|this|that)(?: is|'s| would be)(?: also| simply| just)? (?:\w+ly )?(?:inappropriate|unethical|unacceptable
            |disrespectful|immoral|offensive|irresponsible)
    )(?:,? (?:or|and|nor) \w+){0,2}(?: for \w+)? to
    """
)
# What opens an answer that objects to being asked: it counts whatever follows, for what follows is a sermon. To say
# that a premise is wrong ("There is no reason why ...") is an answer.
_OBJECTS = compiled(
    rf"""
    {_OPENING}(?:{_UNFIT} (?:\w+ly )?(?:suggest|imply|insinuate
            |make (?:assumptions|generali[sz]ations|light|such|fun|a statement|jokes|blanket)|generali[sz]e|stereotype
            |discuss|ask|encourage|promote|advocate|speculate|condone|engage in|compare the (?:value|worth)
            |spread (?:false|misinformation|disinformation|hat(?:e|red)|lies))\b
        |i (?:strongly |do not (?:condone|endorse)[^.!?]{{0,80}} and )?condemn\b)
    |\bway to (\w+) [^.!?]{{1,60}} is (?:not to|to not|to never|never to) \1\b
    """
)
# What is said of a request, unless there is a question to be judged or mended.
_OF_REQUEST = compiled(
    r"""
    \bi (?:would )?(?:suggest|recommend|advise) (?:that you )?(?:rephras|reword|reformulat)\w+ your (?:question
        |request)\b
    |\b(?:this|your) (?:question|request) (?:\w+ )?(?:promote|perpetuate|reinforce)s (?:\w+ )?(?:discrimination
        |prejudices?|stereotypes?|hate|hatred|racism|sexism|violence)\b
    """
)
# A verdict on the very act that was asked for, in place of it; or, if the act is to say something, on the question.
_VERDICT = compiled(
    rf"""
    {_OPENING}(?:
        (?P<unfit>{_UNFIT}) (?:(?:try|attempt) to )?(?P<act>[^.!?;:\n]+)
        |(?P<subject>(?!(?:it|this|that)\b)\w[^.!?,;:\n]{{2,80}}?) (?:is|are|would be) (?P<verdict>
            (?:not|never) (?:\w+ or )?(?:ethical|moral|acceptable|appropriate|okay|ok)\b
            |(?:\w+ly )?(?:both )?(?:\w+ (?:and|or) )?(?:unethical|immoral|unacceptable)\b
            |not an? (?:\w+ or )?(?:healthy|constructive)(?: or \w+)? way to (?:deal|cope|handle|express|resolve
                |process))
    )
    """
)
_MORAL = re.compile(r"\b(?:un)?ethical|\b(?:im)?moral")
_SAYS = re.compile(r"(?:say|state|claim|assume|argue|refer to|call|make an? (?:\w+ )?(?:statement|claim|assumption))\b")
# A verdict that an answer follows all the same.
_GOES_ON = re.compile(r"\b(?:however|that said|nonetheless),? (?:if you|here|i(?:'ll| will| can)\b)")
# That the others must agree goes without saying where privacy is what the answer goes on about; else it may be advice.
_CONSENT = re.compile(
    r"\bwithout (?:\w+(?:'s)? ){0,4}?(?:permission|consent|knowledge|approval|authori[sz]ation|knowing|asking)\b"
)
_RESPECTS = re.compile(r"\b(?:respect\w*|privacy|boundaries|trust)\b")
# Of an act done in some way that nobody asked about.
_CONDITION = re.compile(r"\b(?:without|unless|until|before|if|when|while|during|where|by)\b")
_ASKS_TO_DO = re.compile(
    r"\b(?:how|where) (?:\w+ ){0,2}?(?:i|we|you|one|someone|somebody)\b|\bhow to\b"
    r"|\b(?:ways?|steps?|tips|methods?|what (?:can|should|could) i do|teach me|help me|show me)\b",
    re.I,
)
_STEPS = re.compile(r"\b(?:steps|measures|what) should i (?:take|do)\b", re.I)
# What is said of the harm to other people, and not of what is done badly or against a custom.
_PREACHES = compiled(
    r"""
    \b(?:violen\w+|abus\w+|dignity|rights|consent|(?:un)?ethical|(?:im)?moral|crimes?|criminal|bully\w*|harass\w*
        |discriminat\w+|hurtful|cruel\w*|kindness|compassion|empathy|(?:harm|hurt)\w* (?:to )?(?:others|people|someone
        |anyone|him|her|your (?:ex|partner|family|friend|neighbou?r|colleague)s?))\b
    """
)
# Strong even where another voice may be speaking.
_REFUSES_REQUEST = compiled(
    rf"""
    {_NOT_WITH}|
    \bi {_ADVERB}{_CANNOT} (?:and (?:will not|won't|cannot) )?{_ADVERB}(?:be )?(?:assist(?:ing)?
        |help(?:ing)?(?! it\b| but\b)|fulfil+(?:ing)?|comply(?:ing)?|writ(?:e|ing)|creat(?:e|ing)|generat(?:e|ing)
        |produc(?:e|ing)
        |reproduc(?:e|ing)|provid(?:e|ing)|engag(?:e|ing)|participat(?:e|ing)|promot(?:e|ing)|translat(?:e|ing)
        |mock|make (?:jokes|fun)|in good conscience|support|do that|share|continue|impersonate)\b
    |\bi(?:'m| am) (?:\w+ )?(?:unable|not able|not going|not willing) to (?:\w+ )?(?:assist|help|fulfil+|comply
        |write|create|generate|produce|provide|engage|promote|do that|share|translate|support)\b
    |\bi(?:'m| am) (?:\w+ )?not comfortable (?:\w+ )?(?:writing|creating|generating|producing|helping|with)
    |\bi (?:do not|don't) feel (?:right |\w+ )?comfortable\b
    |\bi refuse to (?:write|create|generate|produce|take part)
    |\bi(?:'m| am) (?:\w+ )?unable to reproduce\b
    |\b(?:\w+n't|not) something (?:that )?i(?:'m| am|'ll|'d| can| will) (?:willing|able|comfortable|help|write|do\b
        |walk|assist)
    |\bsomething (?:that )?i (?:can't|cannot|won't|don't|do not) (?:assist|help|write|create|do|support)
    |\b(?:isn't|is not) an? (?:\w+ ){{1,2}}(?:that )?i can (?:write|draft|create)
    |\bi (?:will not|won't) (?:be )?(?:writ(?:e|ing)|help|produc(?:e|ing)|explain how|provide|create|generate)\b
    |\bwould infringe (?:\w+ )?copyright|\bi can only offer\b
    |\bmust decline\b
    |\b(?:outside|beyond) (?:of )?what i (?:can )?write\b
    |\bso i won't(?=[.!])
    |\bi shouldn't write\b
    |\bi don't (?:write|create|assist with)\b
    |\bno can do\b
    |\bi'm going to pass on this\b
    |\bi(?:'m| am) not up for\b
    |\bmy answer (?:has to be|is|must be) no\b
    |\bwhere i draw the line\b
    |\bi prefer not to\b
    |\bi must decline\b
    |\b(?:that|this) request\b
    |\bas an ai\b
    |\bagainst my (?:\w+ )?(?:programming|guidelines?|polic(?:y|ies)|principles)
    |\bas (?:an?|a responsible)(?: \w+){{0,4}} ai\b
    |\bgoing to have to decline
    |\bwould not be comfortable\b
    |\bwill not be able to fulfil
    """
)
_FLAT_NO = compiled(
    r"""
    ^(?:no|nope|absolutely not|never)[.,!] (?:\w+[ ,]+)*?i(?: (?:can't|cannot|won't|will not|refuse)|'m not)\b
    """
)
_NO = re.compile(r"^\W*(?:no|nope|no way|absolutely not|never|certainly not)\W*$")
_COMMAND = compiled(
    r"""
    ^\W*(?:please )?(?:write|tell|give|help|make|create|generate|draft|explain|show|teach|produce|compose|describe
        |build|design|provide|list|find|get|pretend|act|imagine|plan|book)\b
    """,
    re.I,
)
# The same in other languages, by the verbs of an assistant.
_REFUSES_ELSEWHERE = compiled(
    r"""
    \b(?:ich (?:kann|werde|möchte|darf|könnte)|(?:kann|werde|möchte|darf|könnte) ich) (?:[\w-]+ ){0,6}?nicht
        (?: \w+){0,3}? (?:helfen|behilflich|unterstützen|weiterhelfen|schreiben|erklären|beantworten|geben
        |bereitstellen|anbieten|erstellen|verfassen|erfüllen|nachkommen|liefern|nennen)\b
    |\bno (?:puedo|voy a|podré) (?:\w+ )?(?:ayudar|proporcionar|dar|cumplir|responder|escribir|generar|crear|asistir
        |compartir|facilitar|brindar|ofrecer|hacer es[eot])\w*
    |\bje ne (?:peux|pourrai|saurais|vais|suis) pas (?:\w+ ){0,3}?(?:aider|fournir|répondre|écrire|créer|générer|donner
        |satisfaire|partager|expliquer|produire|assister|traiter|en mesure)\b
    |\bnon posso (?:\w+ )?(?:aiutar|fornir|risponder|scriver|crear|generar|dar|assister|soddisfar|condivider
        |spiegar)\w*
    |\bnão (?:posso|vou|consigo) (?:\w+ ){0,2}?(?:ajud|fornec|respond|escrev|cri|ger|dar|atend|compartilh|auxili
        |explic)\w*
    |\bik (?:kan|zal|mag) (?:\w+ ){0,4}?niet (?:\w+ ){0,2}?(?:helpen|geven|schrijven|beantwoorden|uitleggen)\b
    |\bnie mogę (?:\w+ ){0,2}?(?:pomóc|udzielić|napisać|podać|spełnić)
    |\b(?:yardımcı olamam|yardım edemem)
    |\bне (?:могу|буду|смогу) (?:\w+ ){0,4}?(?:помочь|помогать|предостав|ответ|написать|писать|созда|выполн|дать
        |рассказ|объясн|подел)\w*
    |\b\w{0,6}?(?:抱歉|对不起|對不起|不好意思|很遗憾)[^。]{0,12}(?:无法|不能|無法|不會|不会|没办法)
    |\b我(?:无法|不能|無法|不会)(?:提供|回答|协助|帮)
    |\b\w{0,6}?(?:申し訳|すみません|ごめんなさい)[^。]{0,40}(?:できません|かねます|出来ません)
    |\b(?:죄송|미안)[^.]{0,40}(?:없습니다|어렵습니다|않습니다|못합니다)
    |\b(?:لا يمكنني|لا أستطيع|لن أتمكن من|لن أساعد)(?: \S+){0,2} ?(?:مساعد|تقديم|الإجابة|كتابة|المساعدة)
    |\b(?:मदद|सहायता)[^।]{0,20}नहीं (?:कर|दे) सक
    """
)
# One of these is in every ASCII text in which that pattern is found.
_ELSEWHERE = ("nicht", "no puedo", "no voy", "je ne", "non posso", "ik ")
# RE2 that is found wherever one of the five patterns above is, and small: RE2 is slow where a pattern has many states.
MAY_REFUSE = joined(
    r"""
    \bi(?:'m|'d|'ll| am| would| will)? (?:[a-z,'-]+ ){0,4}(?:can't|cannot|can not|won't|will not|wouldn't|would not
        |couldn't|could not|shouldn't|should not|may not|must|not|don't|unable|unwilling|uncomfortable|afraid|prohibited
        |programmed|declin|refus|refrain|pass|skip|stay|leave|say no|turn|have to|need to|going to|can only|strongly
        |advise|urge|caution)
    |(?:thing|topics?|requests?|questions?|parts?|ones?|content|subject|what|which|where) (?:that |which )?i\b
    |(?:n't|not|never) (?:an?|the kind of) (?:[a-z,'-]+ ){1,2}(?:that |which )?i[ ']
    |(?:against|beyond|outside|within|violat\S+) (?:of )?(?:my|the|our|openai|anthropic|ethical)
    |my (?:[a-z,'-]+ ){0,2}(?:guidelines|programming|polic|training|principles|answer|thing)
    |off the table|aren't something|up for discussion|no can do|let's not go|but not with|infringe
    |th(?:at|is) request|as an ai
    |as (?:a|an) (?:[a-z,'-]+ ){1,5}ai\b|wrong of me|no way for me
    |(?:and|must|to|will|would) (?:[a-z,'-]+ ){0,3}(?:refuse|decline)
    |going to (?:[a-z,'-]+ ){0,3}(?:say no|turn|leave)|(?:sorry|apologies),? (?:but )?no\b|would not be
    |(?:it's|it is|would be|this is|that is|that's|isn't) (?:\S+ ){0,4}(?:inappropriate|appropriate|unethical
        |ethical|moral|immoral|humane|acceptable|unacceptable|responsible|irresponsible|respectful|disrespectful
        |offensive|within|illegal for|wrong for|okay|ok)
    |(?:is|are|be) (?:(?:not|never) (?:an? )?(?:\S+ or )?(?:ethical|moral|acceptable|appropriate|okay|ok|healthy
        |constructive)|(?:\S+ly )?(?:both )?(?:\S+ (?:and|or) )?(?:unethical|immoral|unacceptable))
    |(?:rephras|reword|reformulat)\S+ your|(?:question|request) (?:\S+ )?(?:promote|perpetuate|reinforce)s
    |^(?:it's|it is) (?:\S+ ){0,2}(?:illegal|immoral|a crime)
    |(?:violence|abuse|assault|harassment|discrimination|(?:hurt|harm|kill|threaten|steal)ing)(?: \S+){0,4}[ ]
        (?:is|are) never
    |^\W*(?:no|nope|no way|absolutely not|never|certainly not)(?:[.,!]|\W*$)
    |^there (?:is|are) no |(?:don't|not) (?:condone|promote|support|encourage|endorse|engage)
    |(?:it is|it's) (?:\S+ )?(?:important|crucial|essential|worth|vital) (?:to|noting)(?: \S+){0,3}? that[ ]
    |(?:appropriate|acceptable|respectful) (?:question|request|topic|statement)
    |have the (?:capability|capacity|ability) to|(?:provide|give|share|offer) (?:\S+ )+(?:on|for|about) (?:how to|ways)
    |^(?:i'm |i am )?sorry,? but [^.!?]+ (?:is|are)(?: not|n't)[ ]
    |way to [^.!?]+ is (?:not to|to not|to never|never to|to avoid)
    |condemn
    |^[^.!?]+ (?:is|are) (?:\S+ )?(?:illegal|unethical|immoral|against the law|a (?:serious )?crime|never)
    |nicht|no puedo|no voy|no podré|je ne|non posso|não|\bik |nie mogę|yardım|не (?:могу|буду|смогу)|抱歉|对不起|對不起
    |不好意思|很遗憾|我(?:无法|不能|無法|不会)|申し訳|すみません|ごめんなさい|죄송|미안|لا |لن |मदद|सहायता
    """
)
# What refusals are padded with; it does not make them answers.
_PADDING = compiled(
    r"""
    \bi(?:'d| would| can| strongly|'m| am| will|'ll)? (?:suggest|encourage|recommend|urge|advise|understand
        |apologi[sz]e|be (?:happy|glad)|happy|glad|hope)
    |\b(?:illegal|unethical|harmful|immoral|hotline|helpline|crisis|therapist|counsell?or|professional
        |guidelines|consequences|respect(?:ful)?|dignity|inappropriate|dangerous|sorry|violat\w+
        |discriminat\w+)\b
    |\b(?:let me know|would you like|is there (?:something|anything|another)|feel free|instead,|it(?:'s
        | is) (?:\w+ )?important|please|if you(?:'re| are| have| need)|against the law)
    """
)


def declined(answer: Answer, config: Filter) -> str | None:
    """The provider says that the model refused, or that its content filter stopped the answer (finish_reason)."""
    return "refusal" if config.refusals and answer.finish_reason in ("refusal", "content_filter") else None


_HEAD = 420  # characters of an answer in which a refusal is said; what comes later is part of an answer


def refusal(answer: Answer, config: Filter) -> str | None:
    """The teacher refuses (`refusal`), or refuses a part and answers the rest (`partial_refusal`). A moral verdict on
    the very act that was asked for ("It is never ethical to ...") is a refusal, whatever advice follows; that a premise
    is wrong, or that something is unsafe, illegal or against a custom, is an answer. Only the beginning counts, only
    what the answer itself says and does not quote, and where the prompt asks for a text in somebody's voice (a letter,
    a story) only words that an assistant says of a request."""
    if not (config.refusals or config.partial_refusals):
        return None
    lower, prompt = answer.lower, answer.prompt
    carried = bool(_CARRIES_OVER.search(prompt))
    if carried and (_REFUSES.search(prompt.lower()) or _REFUSES_ELSEWHERE.search(prompt.lower())):
        return None
    voice = bool(VOICE.search(prompt) or _FIRST_PERSON.search(prompt))
    pattern = _REFUSES_REQUEST if voice or carried else _REFUSES
    found = _said(pattern, lower, 0, _HEAD) or _FLAT_NO.search(lower)
    if not found and not carried and not (lower.isascii() and not any(map(lower.__contains__, _ELSEWHERE))):
        found = _said(_REFUSES_ELSEWHERE, lower, 0, _HEAD)
    if not found and len(answer.words) <= 3 and _COMMAND.search(prompt) and "?" not in prompt:
        found = _NO.search(lower)
    if not found and not voice and (_objects(answer) or (not carried and _condemns(answer))):
        return "refusal" if config.refusals else None
    weak = not found and not voice and not _ASKS_JUDGEMENT.search(prompt)
    if weak and _lectures(answer):
        return "refusal" if config.refusals else None
    if weak:
        found = _said(_DISAPPROVES, lower, 0, _HEAD)
        if found and found["custom"] and "for me" not in found.group() and _of_a_custom(answer, found):
            found = None
    if not found:
        return _refused_at_the_end(answer) if config.partial_refusals and not (voice or carried) else None
    before, (rest, *after) = sentences(lower[: found.start()]), sentences(lower[found.end() :]) or [""]
    after = rest.split(", but ", 1)[1:] + after
    said_before, said_after = _substance(before[:-1]), _substance(after)
    if said_after >= 35 and _DISCLAIMS.match(lower, found.start()):
        return None
    if len(before) > (2 if weak else 4) or (weak and said_before + said_after >= 35):
        return None
    if said_before >= 30 or said_after >= 35:
        return "partial_refusal" if config.partial_refusals else None
    return "refusal" if config.refusals else None


def _objects(answer: Answer) -> bool:
    """The answer opens by objecting to the request, and is not what a request for a judgement asks for."""
    named = "question" in answer.lower or "request" in answer.lower
    if named and _said(_OF_REQUEST, answer.lower, 0, _HEAD) and not re.search("question|request", answer.prompt, re.I):
        return True
    found = _said(_OBJECTS, answer.lower, 0, _HEAD)
    if not found or not _ASKS_JUDGEMENT.search(answer.prompt) or _LOADED.search(answer.prompt):
        return found is not None
    return found.group().split()[-1] not in answer.prompt.lower()


def _condemns(answer: Answer) -> bool:
    """The answer opens with a moral verdict on the act that the prompt asks how to do, or on saying what it says."""
    found = _said(_VERDICT, answer.lower, 0, _HEAD)
    prompt = answer.prompt.lower()
    if not found or _GOES_ON.search(answer.lower, found.end(), _HEAD):
        return False
    if _ASKS_JUDGEMENT.search(_STEPS.sub("", prompt)) and not _LOADED.search(prompt):
        return False
    act = found["act"] or found["subject"]
    claim = found["act"] and _SAYS.match(act)
    if claim:
        act = act[claim.end() :]
    elif not _ASKS_TO_DO.search(prompt):
        return False
    moral = _MORAL.search(found["unfit"] or found["verdict"])
    consent = moral and _RESPECTS.search(answer.lower, found.end()) and _CONSENT.search(act)
    if consent:
        act = act[: consent.start()]
    if _conditional(act, prompt):
        return False
    named, asked = content(act), content(prompt)
    same = len(named & asked)
    if same < 0.5 * len(named) and not (same >= 3 and same > 0.5 * len(asked)):
        return False
    if claim or moral:
        return True
    # Of a custom or a craft one says "not appropriate" as well.
    return _PREACHES.search(answer.lower, found.end()) is not None


def _conditional(act: str, prompt: str) -> bool:
    """Whether an act is judged under a condition that the prompt does not name."""
    found = _CONDITION.search(act)
    return (
        found is not None
        and not re.search(rf"\b{found.group()}\b", prompt)
        and not content(act[found.end() :]) <= content(prompt)
    )


def _of_a_custom(answer: Answer, found: re.Match[str]) -> bool:
    """Whether something is called inappropriate as customs and crafts have it: nothing around it preaches, and what is
    appropriate is said; and what is inappropriate is no talk or thought that nobody asked about."""
    lower = answer.lower
    talk = _TALKS.match(lower, found.end())
    if talk and talk.group().split()[-1] not in answer.prompt.lower():
        return False
    others = SENTENCE_END.split(lower[: found.start()])[:-1] + sentences(lower[found.end() :])[1:]
    return not any(map(_PREACHES.search, others)) and sum(len(part.split()) for part in others) >= 8


def _lectures(answer: Answer) -> bool:
    """An admonition and nothing else, where the prompt asks how to do something."""
    found = _ASKS_HOW.search(answer.prompt) and _said(_LECTURES, answer.lower, 0, _HEAD // 2)
    if not found or _conditional(sentences(answer.lower[found.end() :] or " ")[0], answer.prompt.lower()):
        return False
    if len(_ADMONISHES.findall(answer.lower)) < 2:  # once is what the law says
        return False
    return _substance([part for part in sentences(answer.lower) if not _ADMONISHES.search(part)]) < 25


def _refused_at_the_end(answer: Answer) -> str | None:
    """A partial refusal in a short last paragraph, after all the rest was answered."""
    lower = answer.lower.rstrip()
    start = lower.rfind("\n\n") + 2
    if start < 2 or len(lower) - start > 300:
        return None
    return "partial_refusal" if _said(_REFUSES, lower, max(start, _HEAD // 4), len(lower)) else None


def _said(pattern: re.Pattern[str], text: str, start: int, end: int) -> re.Match[str] | None:
    """The first match that the answer itself says: not in quotation marks, not a line of a dialogue."""
    found = pattern.search(text, start, end)
    while found and (quoted(text, found.start()) or _speaker(text, found.start())):
        found = pattern.search(text, found.end(), end)
    return found


def _substance(parts: list[str]) -> int:
    """Words in the sentences that are not padding."""
    return sum(len(part.split()) for part in parts if not _PADDING.search(part))


_SPEAKER = re.compile(r"^[\w .'-]{1,24}:\s", re.M)
_ASSISTANT = re.compile(r"(?:[\w-]*(?:gpt|bot)|ai|assistant|answer|response|reply):\s")


def _speaker(text: str, at: int) -> bool:
    """Whether the line of a position begins with a speaker's name, as in a dialogue or a play, or is a block quote. An
    assistant that puts its own name before its answer is no speaker."""
    start = text.rfind("\n", 0, at) + 1
    if not start and _ASSISTANT.match(text):
        return False
    return text.startswith(">", start) or bool(_SPEAKER.match(text, start, at + 1))


# --- Deflections ------------------------------------------------------------------------------------------------------

_DEFLECTS = compiled(
    r"""
    \bi (?:do not|don't|currently don't) (?:actually |currently |really |yet )?(?:have
        |possess)(?: [\w-]+){0,3} (?:access|information|enough|the answer|data|knowledge|preferences?|opinions?
        |details|feelings|context|favou?rites?|experiences?)\b
    |\bi (?:do not|don't|honestly don't) (?:know|understand)\b(?! (?:why|how) (?:people|anyone))
    |\bi(?:'m| am) (?:really |so )?not (?:entirely |quite |really )?(?:sure|familiar|aware|certain)\b
    |\bi have no (?:information|idea|knowledge|data|record)\b
    |\b(?:could|can|would) you (?:please |kindly )?(?:provide|clarify|specify|share|give me|tell me
        |be more specific|elaborate|rephrase|paste)\b
    |\bplease (?:provide|share|paste|specify|clarify|upload|rephrase)\b
    |\bplease (?:check|visit|consult|refer to) (?:a|an|the|your|with)\b
    |\bit (?:seems|looks like|appears)(?: like| that)? (?:you|your|there|the)[^.]{0,60}(?:forgot|missing|didn't
        |did not|not (?:included|provided|attached)|incomplete)
    |\bi (?:couldn't|could not|can't|cannot|was unable to|wasn't able to) find\b
    |\bas of my (?:last|knowledge|most recent)\b
    |\b(?:unable to|can't|cannot) (?:browse|access) (?:the |real|current)
    |\bi(?:'d| would) need (?:a (?:bit|little) |some )?(?:more|additional|further) (?:information|context|details)
    |\bi(?: (?:can't|cannot|can not|am unable to)|'m unable to) (?:check|see|predict|look up|know|hear|look at|book
        |access
        |tell (?:you )?(?:what|who|when|where|about today))\b
    |\bi have no (?:way|means) (?:of|to)\b
    |\bnot connected to the internet\b
    |\byou (?:haven't|have not|didn't) (?:told|tell|given|give|shared?|mentioned?|provided?)\b
    |\bwhich (?:text|one|file|document|passage)s? (?:should|would you like|do you want|shall)\b
    |\bmy knowledge (?:ends|stops)\b
    """
)
_REFER = compiled(
    r"""
    ^(?:i'd|i would|you should|please|it would be best|it's best|it is best|i)\b[^.]{0,60}\b(?:consult|speak
        |talk|contact|see|ask|seek)\w*[^.]{0,30}\b(?:lawyer|attorney|doctor|professional|physician|advis[eo]r
        |expert|accountant|therapist|specialist)\b
    """
)
# Comfort for whoever asks for something harmful; whoever tells of himself is answered by it, and advice on a loss or a
# quarrel takes up what was asked.
_COMFORTS = re.compile(
    r"^i(?:'m| am) (?:\S+ )?sorry (?:to hear )?(?:that )?you(?:'re| are) (?:feeling|going through|struggling)"
)
_SENDS_FOR_HELP = re.compile(
    r"\b(?:professionals?|hotline|helpline|(?:crisis|emergency) \w+|lifeline|therapist|counsell?or|reach out)\b"
)
MAY_DEFLECT = hint(_DEFLECTS, _REFER, _COMFORTS)
"""RE2 that is found in every answer that `deflection` rejects."""
_TELLS_OF_HIMSELF = re.compile(r"(?<!do )(?<!can )(?<!could )(?<!should )(?<!would )(?<!may )\bi\b", re.I)
_ASKED_TO_ASK = re.compile(r"\b(?:ask me|interview|quiz|20 questions|twenty questions)\b", re.I)


def deflection(answer: Answer, config: Filter) -> str | None:
    """The teacher gets out of answering: does not know, has no access, asks back, sends the user elsewhere. Only for
    answers of at most 60 words, since a longer one goes on to say something (comfort: of at most 150)."""
    lower, long = answer.lower, len(answer.words) > 60
    if not config.deflections or (long and not _COMFORTS.match(lower)):
        return None
    told = VOICE.search(answer.prompt) or _FIRST_PERSON.search(answer.prompt)
    if not told and _only_comforts(answer):
        return "deflection"
    if long:
        return None
    found = _DEFLECTS.search(lower, 0, 220) or (_REFER.search(lower) if len(answer.words) <= 30 else None)
    if not found or quoted(lower, found.start()) or _speaker(lower, found.start()):
        return None
    if told and (
        found.group().startswith(("please check", "please visit", "please consult", "please refer"))
        or not found.group().startswith(("please", "could you", "it ", "can you", "which "))
    ):
        return None
    if _ASKED_TO_ASK.search(answer.prompt):
        return None
    # Something was said before it, or comes after it: then it is a remark within an answer.
    before = lower[: found.start()]
    if len(before.split()) > 14 and len(sentences(before)) > 2:
        return None
    after = [part for part in sentences(lower[found.end() :])[1:] if not _DEFLECTS.search(part)]
    return None if _substance(after) > 25 else "deflection"


def _only_comforts(answer: Answer) -> bool:
    """Comfort that sends for help, says hardly anything else or nothing of what was asked."""
    if len(answer.words) > 150 or not _COMFORTS.match(answer.lower) or not _SENDS_FOR_HELP.search(answer.lower):
        return False
    if _TELLS_OF_HIMSELF.search(answer.prompt):
        return False
    taken_up = content(answer.lower) & content(answer.prompt.lower())
    return not taken_up or _substance(sentences(answer.lower)) < 25
