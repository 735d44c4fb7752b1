"""libexpat as an oracle (namespace mode), in a process of its own.

Request:  one byte, the depth of the element asked for (0: the root); four bytes, big-endian,
          the document's length; the document.
Answer:   four bytes, big-endian: where the root ends, or 0xFFFFFFFF if expat refused the
          document up to there; one byte: 1 if it took all of the document; four bytes: a length;
          a canonical form of the (first) element at that depth, or expat's complaint.
"""

import struct
import sys
import xml.parsers.expat as expat


def ask(document, level):
    parser = expat.ParserCreate("UTF-8", "\n")
    parser.buffer_text = True
    state = {"depth": 0, "end": None, "events": 0, "done": False}
    canon = []
    text = []

    def flush():
        if text:
            joined = "".join(text)
            canon.append("T%d:%s" % (len(joined), joined))
            text.clear()

    def wanted():
        return not state["done"] and state["depth"] > level

    def start(name, attributes):
        state["events"] += 1
        state["depth"] += 1
        if wanted():
            flush()
            canon.append("(%d:%s" % (len(name), name))
            for key in sorted(attributes):
                value = attributes[key]
                canon.append(" %d:%s=%d:%s" % (len(key), key, len(value), value))

    def end(name):
        if wanted():
            flush()
            canon.append(")")
        state["depth"] -= 1
        if state["depth"] == level:
            state["done"] = True
        if state["depth"] == 0:
            at = parser.CurrentByteIndex
            # For an empty-element tag expat stands behind it, else at the end tag.
            if state["events"] > 1 or document[at - 2 : at] != b"/>":
                at = document.index(b">", at) + 1
            state["end"] = at
        state["events"] += 1

    def characters(data):
        state["events"] += 1
        if wanted():
            text.append(data)

    def other(*_):
        state["events"] += 1

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.CommentHandler = other
    parser.ProcessingInstructionHandler = other
    parser.StartCdataSectionHandler = other
    complaint = ""
    try:
        parser.Parse(document, True)
    except expat.ExpatError as error:
        complaint = str(error)
    answer = complaint if state["end"] is None or complaint else "".join(canon)
    answer = answer.encode("utf-8", "surrogatepass")
    root_end = 0xFFFFFFFF if state["end"] is None else state["end"]
    return struct.pack(">IBI", root_end, not complaint, len(answer)) + answer


def main():
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sink.write(expat.EXPAT_VERSION.encode() + b"\n")
    sink.flush()
    while head := source.read(5):
        level, length = struct.unpack(">BI", head)
        sink.write(ask(source.read(length), level))
        # Only when nothing more waits would the flush be needed; the parent reads in step with
        # what it writes, in batches, and closes each batch with an empty document.
        if length == 0:
            sink.flush()


main()
