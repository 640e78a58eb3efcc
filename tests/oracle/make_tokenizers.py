"""Golden token ids, by the `tokenizers` package (pip install tokenizers).

    python make_tokenizers.py            writes ../golden/tokenizer/, the same bytes every time

text.txt          1 MB of UTF-8 on which tokenizers disagree if they can
NAME.json         five tokenizers of the common styles (small-model is worker/small-model's own)
NAME.ids          little-endian uint16 ids of text.txt as one string, no special tokens added; the
                  small model's of the whole text, the others' of its first PART bytes
cases.json        short texts: ids with and without added special tokens, decoded text with and
                  without special tokens, for every tokenizer
Characters are from Unicode 14 and older, which the regular expression libraries of 2022 know.
"""
import collections
import io
import json
import lzma
import os
import random
import tarfile
import unicodedata

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers, Regex

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, '..', 'golden', 'tokenizer')
SMALL = os.path.join(HERE, '..', '..', 'worker', 'small-model')
BYTES = 1_000_000
PART = 200_000
VOCAB = 1500
UNICODE = 14

# The published patterns of Llama 3 and Qwen 2 tokenizers
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')

SENTENCES = (
    '敏捷的棕色狐狸跳过了懒狗。', '今天是二〇二六年十一月，天气很好！', '我们需要更多的显存，但是没有。',
    '素早い茶色の狐はのろまな犬を飛び越える。', 'ｶﾀｶﾅとひらがな、漢字と１２３。', '빠른 갈색 여우가 게으른 개를 뛰어넘는다.',
    'Съешь же ещё этих мягких французских булок.', 'Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.',
    'Příliš žluťoučký kůň úpěl ďábelské ódy.',
    'Zwölf Boxkämpfer jagen Viktor über den großen Deich.',
    'صِف خَلقَ خَودِ كَمِثلِ الشَمسِ', 'דג סקרן שט בים מאוכזב',
    'ऋषियों को सताने वाले दुष्ट राक्षसों',
    'เป็นมนุษย์สุดประเสริฐเลิศคุณค่า', "It's I'll we've THEY'RE don't 'S 'tis o'clock",
    'naïve café Ångström ﬁne ﬂow ½ ² Ⅷ ①', 'price: $1,234.56 €7.00 ¥900 (12.5%)',
    '👩‍👩‍👧‍👦 👍🏽 🇩🇪🇯🇵 ❤️ ☎ ✈️ 🏴‍☠️',
    'x = a[i] << 3 | ~b; /* 0xFF */ // ok\r\n', 'e = mc², ∑ᵢ xᵢ ≤ ∞ → ℝ',
    'http://example.org/a?b=c&d=%20#e user@example.com', '{"key": [1, 2.5e-3, null], "t": "\\n"}\n',
)
SPECIALS = ('<|endoftext|>', '<|begin_of_text|>', '<|eot_id|>', '<|im_start|>', '<|im_end|>', '<s>',
            '</s>', '<unk>', '<mask>', '<|fim|>', '<|endoftext|', '<0x0A>', '▁')


def letters(rng, low, high, count):
    """`count` assigned characters of a range (categories C* and surrogates left out)."""
    out = ''
    while len(out) < count:
        c = chr(rng.randrange(low, high))
        if unicodedata.category(c)[0] != 'C':
            out += c
    return out


def snippet(rng, documents):
    """One piece of one kind of text."""
    kind = rng.randrange(16)
    if kind < 5:
        text = rng.choice(documents)
        at = rng.randrange(len(text) - 700)
        return text[at:at + rng.randrange(40, 700)]
    if kind == 5:                                   # code-like, with tabs and CRLF
        lines = [rng.choice(['', '\t', '    ', '\t\t  ', ' ' * rng.randrange(20)])
                 + rng.choice(['if (x->n_rows != 0x1F) {', 'return self.__init__(a, *b)', '}',
                               '#define N 64u', 'for i in range(10):',
                               "'don''t' || \"can't\"", '--i;', '', '// 中文注释'])
                 for _ in range(rng.randrange(2, 9))]
        return rng.choice(['\n', '\r\n', '\r']).join(lines)
    if kind == 6:
        low, high = rng.choice([(0x4e00, 0x9fff), (0x3041, 0x30ff),
                               (0xac00, 0xd7a3), (0x20000, 0x2a6d0)])
        return letters(rng, low, high, rng.randrange(1, 40))
    if kind == 7:
        faces = [chr(rng.randrange(0x1f300, 0x1f650)) for _ in range(rng.randrange(1, 6))]
        return rng.choice(['', '\u200d', '\ufe0f', '\U0001f3fd']).join(faces)
    if kind == 8:                                   # combining marks, in and out of canonical order
        base = [rng.choice('aeiouAEOUncsyz가가한') + ''.join(
            letters(rng, 0x300, 0x345, rng.randrange(0, 4))) for _ in range(rng.randrange(1, 12))]
        text = ''.join(base)
        if rng.random() >= .6:
            return text
        return unicodedata.normalize(rng.choice(['NFC', 'NFD', 'NFKD']), text)
    if kind == 9:
        return ''.join(chr(rng.choice([*range(32), 127, 0x85, 0x9f, 0xad, 0x200b, 0x202e, 0xfeff]))
                       for _ in range(rng.randrange(1, 6)))
    if kind == 10:
        digits = rng.choice(['0123456789', '0123456789', '٠١٢٣٤٥٦٧٨٩', '０１２３４５６７８９', '²³¹½Ⅷ'])
        return ''.join(rng.choice(digits) for _ in range(rng.randrange(1, 60)))
    if kind == 11:
        blank = rng.choice([' ', ' ', '\n', '\t', '\r\n', ' \n',
                           '\u00a0', '\u3000', '\u2003', '\u2028'])
        return blank * rng.randrange(1, rng.choice([4, 12, 70]))
    if kind == 12:
        return rng.choice(['', ' ', '  ']) + rng.choice(SPECIALS) + rng.choice(['', ' ', '\n', 's'])
    if kind == 13:
        low, high = rng.choice([(0xa1, 0x24f), (0x370, 0x52f), (0x591, 0x6ff), (0x900, 0xdff),
                                (0xe01, 0xfff), (0x1e00, 0x1fff), (0x2010, 0x2bff),
                                (0xf900, 0xffef), (0x10000, 0x1014f), (0x1d400, 0x1d7ff)])
        return letters(rng, low, high, rng.randrange(1, 30))
    if kind == 14:
        return rng.choice('!?.,;:-_=+*/\\#@&|^~`\'"()[]{}<>') * rng.randrange(1, 30)
    return rng.choice(SENTENCES)


def make_text(documents, seed, size):
    rng = random.Random(seed)
    out, used = [], 0
    while used < size:
        out.append(snippet(rng, documents) + rng.choice(['', '', ' ', ' ', '\n']))
        used += len(out[-1].encode())
    return ''.join(out).encode()[:size].decode(errors='ignore')


def train(tokenizer, documents, specials):
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=specials, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  limit_alphabet=256)
    tokenizer.train_from_iterator([*documents, *SENTENCES], trainer=trainer)
    return tokenizer


def split_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), 'isolated', invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])


def llama3(documents):
    """Split by a pattern, whole words of the vocabulary taken without merges, BOS added."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = split_bytes(LLAMA3)
    t = train(t, documents, [])
    raw = json.loads(t.to_str())
    raw['model']['ignore_merges'] = True
    vocab = raw['model']['vocab']
    for word in ('Ġinformation', 'Ġhowever', 'Ġmemory', '123',
                 '\u0120\u0120\u0120\u0120\u0120', 'Ġdoor'):
        vocab.setdefault(word, len(vocab))          # reachable as whole words only
    t = Tokenizer.from_str(json.dumps(raw))
    t.decoder = decoders.ByteLevel()
    names = ('<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>')
    t.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    bos = t.token_to_id(names[0])
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f'{names[0]} $A',
                                      pair=f'{names[0]} $A {names[0]}:1 $B:1',
                                      special_tokens=[(names[0], bos)])])
    return t


def gpt2(documents):
    """GPT-2's built-in pattern, a prefix space, and added tokens that strip what is around them."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    t = train(t, documents, ['<|endoftext|>'])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken('<mask>', lstrip=True, special=True, normalized=False)])
    t.add_tokens([AddedToken('<|fim|>', rstrip=True, normalized=False),
                  AddedToken('clock', single_word=True, normalized=False)])
    return t


def qwen2(documents):
    """NFC first, then a pattern that splits digits one by one."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = split_bytes(QWEN2)
    t = train(t, [unicodedata.normalize('NFC', d) for d in documents], [])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(name, special=True, normalized=False)
                          for name in ('<|endoftext|>', '<|im_start|>', '<|im_end|>')])
    return t


def sentencepiece(documents):
    """As converted from SentencePiece BPE (Llama 2, MiniCPM): spaces become U+2581, no
    pre-tokenizer, unknown characters fall back to bytes."""
    t = Tokenizer(models.BPE(unk_token='<unk>'))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
    counts = collections.Counter(''.join(documents).replace(' ', '▁'))
    common = sorted(counts, key=lambda c: (-counts[c], c))[:200]
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - 259, show_progress=False,
                                  initial_alphabet=common, limit_alphabet=len(common))
    t.train_from_iterator([*documents, *SENTENCES], trainer=trainer)
    raw = json.loads(t.to_str())
    vocab = ['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256))]
    trained = sorted(raw['model']['vocab'], key=raw['model']['vocab'].get)
    vocab += [w for w in trained if w not in vocab]
    ids = {w: i for i, w in enumerate(vocab)}
    raw['model'].update(vocab=ids, byte_fallback=True, fuse_unk=True)
    raw['pre_tokenizer'] = None
    t = Tokenizer.from_str(json.dumps(raw))
    t.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    t.add_special_tokens([AddedToken(name, special=True, normalized=False)
                          for name in ('<unk>', '<s>', '</s>')])
    t.post_processor = processors.TemplateProcessing(
        single='<s> $A', pair='<s> $A <s>:1 $B:1', special_tokens=[('<s>', 1)])
    return t


def metaspace(documents):
    """The newer form of the same: a Metaspace pre-tokenizer, prefix at the first piece only."""
    raw = json.loads(sentencepiece(documents).to_str())
    raw['normalizer'] = None
    t = Tokenizer.from_str(json.dumps(raw))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    return t


def short_texts():
    rng = random.Random(3)
    texts = ['', ' ', '  ', '\n', 'a', ' a', 'a ', 'a  b', '\r\n\r\n', '\x00', 'é',
             'e\u0301', '한', '\u1112\u1161\u11ab',
             '12345', '1234567890123', ' 007', "I'M don'T 'll", 'Hello<|endoftext|>world',
             '<|endoftext|>', '<|endoftext|><|endoftext|>', '  <mask>  x', 'a <|fim|>  b',
             'clock clocks o\'clock',
             '<s>a</s>', '<|begin_of_text|>hi<|eot_id|>', '<unk>', '▁', 'a▁b',
             '\u200b', '\ufeffx', '👩‍👩‍👧‍👦', '\U0010fffd',
             'tab\there', 'x\u00a0y', 'ﬁ', '\u212b', ' information however', 'information',
             '123 456', '      door', 'q\u0307\u0323', '\u0344', '<0x0A>', '\ue000']
    texts += list(SENTENCES)
    documents = ['It is what it is. ' * 60]
    texts += [''.join(snippet(rng, documents)[:30] for _ in range(3)) for _ in range(40)]
    return texts


def main():
    os.makedirs(OUT, exist_ok=True)
    with lzma.open(os.path.join(SMALL, 'cases.tar.xz')) as f:
        with tarfile.open(fileobj=io.BytesIO(f.read())) as tar:
            lines = tar.extractfile('cases/text-16k.jsonl').read().decode().splitlines()
    documents = [json.loads(line)['text'] for line in lines]
    text = make_text(documents, 1, BYTES)
    part = text.encode()[:PART].decode(errors='ignore')
    with open(os.path.join(OUT, 'text.txt'), 'wb') as f:
        f.write(text.encode())
    training = [d[:20000] for d in documents[:12]] + [make_text(documents, 2, 100_000)]
    made = {'small-model': Tokenizer.from_file(os.path.join(SMALL, 'tokenizer.json'))}
    for make in (llama3, gpt2, qwen2, sentencepiece, metaspace):
        made[make.__name__] = make(training)
        path = os.path.join(OUT, make.__name__ + '.json')
        made[make.__name__].save(path)
        made[make.__name__] = Tokenizer.from_file(path)         # what a reader of the file sees
    cases = [{'text': t} for t in short_texts()]
    for name, t in made.items():
        whole = text if name == 'small-model' else part
        ids = t.encode(whole, add_special_tokens=False).ids
        assert max(ids) < 2**16
        np.array(ids, '<u2').tofile(os.path.join(OUT, name + '.ids'))
        print(name, 'vocabulary', t.get_vocab_size(), 'bytes', len(whole.encode()), 'ids', len(ids))
        for case in cases:
            plain, added = (t.encode(case['text'], add_special_tokens=x).ids for x in (False, True))
            case[name] = {'ids': plain, 'ids_special': added,
                          'decoded': t.decode(added, skip_special_tokens=False),
                          'decoded_skip': t.decode(added, skip_special_tokens=True)}
    with open(os.path.join(OUT, 'cases.json'), 'w') as f:
        f.write('[\n' + ',\n'.join(json.dumps(c) for c in cases) + '\n]\n')


if __name__ == '__main__':
    main()
