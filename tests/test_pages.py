
def test_a_text_beside_each_page(processed):
    "9: links lead to other texts, no image is part of a text, and nothing leads to a notebook"
    import sys
    sys.path.insert(0, str(root/'nbs'/'_sphinx'))
    from pages import docname
    from twins import llms, sitemap, to_twin, twin
    assert to_twin('[a](../04_show.ipynb#x) ![b](data:image/png;base64,AA) [c](https://example.org/d.html)', 'gather/search') == \
        '[a](../show.html.md#x) [image: b] [c](https://example.org/d.html)'
    texts = {name: twin(cells, docname(name)) for name, cells in processed.items()}
    assert [n for n, t in texts.items() if re.search(r'\]\([^)]*\.ipynb', t) or 'data:image' in t or len(t) > 100_000 or not t.startswith('# ')] == []
    assert llms().count('.html.md)') == sitemap(names).count('<loc>') == len(names)
