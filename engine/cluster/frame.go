package cluster

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

const (
	// ProtocolVersion is the version of the mesh's protocol.
	ProtocolVersion = 1

	headerSize = 8
	magic      = 0x494d // "IM"

	maxHandshake = 4 << 10 // bytes of a hello, ready or refuse frame
	maxFrame     = maxOffer + maxTag + 2
	maxTag       = 64
	maxOffer     = 1 << 20 // bytes of one offer
	maxReason    = 400     // bytes of a reason sent to a peer
)

type frameType uint8

const (
	frameHello frameType = 1 + iota
	frameReady
	frameRefuse
	frameExchange
	framePing
	frameGoodbye
)

var errGarbled = errors.New("garbled")

// writeFrame sends a frame in one Write, so that a frame is one TLS record where it fits.
func writeFrame(w io.Writer, t frameType, payload []byte) error {
	b := make([]byte, headerSize+len(payload))
	binary.BigEndian.PutUint16(b, magic)
	b[2] = byte(t)
	binary.BigEndian.PutUint32(b[4:], uint32(len(payload)))
	copy(b[headerSize:], payload)
	_, err := w.Write(b)
	return err
}

// readFrame reads a frame of at most max bytes of payload. What cannot be a frame yields errGarbled.
func readFrame(r io.Reader, max int) (frameType, []byte, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	if binary.BigEndian.Uint16(h[:]) != magic || h[3] != 0 {
		return 0, nil, fmt.Errorf("%w: a frame starts with %q, not with %q", errGarbled, h[:2], "IM")
	}
	t := frameType(h[2])
	if t < frameHello || t > frameGoodbye {
		return 0, nil, fmt.Errorf("%w: unknown frame type %d", errGarbled, t)
	}
	n := binary.BigEndian.Uint32(h[4:])
	if uint64(n) > uint64(max) {
		return 0, nil, fmt.Errorf("%w: a frame of %d bytes, at most %d are allowed here", errGarbled, n, max)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, payload, nil
}

// hello is what a node says of itself before anything else.
type hello struct {
	Version int         `json:"version"` // ProtocolVersion
	Wire    int         `json:"wire"`    // wire.Version
	VM      spec.VMID   `json:"vm"`
	Epoch   wire.Epoch  `json:"epoch"`
	Plan    string      `json:"plan"` // digest of the plan
	Nodes   int         `json:"nodes"`
	From    wire.NodeID `json:"from"`
	To      wire.NodeID `json:"to"`
}

func decodeHello(b []byte) (hello, error) {
	var h hello
	if err := strictJSON(b, &h); err != nil {
		return hello{}, fmt.Errorf("%w: hello: %v", errGarbled, err)
	}
	return h, nil
}

// refusal is why a side ends a handshake.
type refusal struct {
	Code   Code   `json:"code"`
	Reason string `json:"reason"`
}

func decodeRefusal(b []byte) (refusal, error) {
	var r refusal
	if err := strictJSON(b, &r); err != nil {
		return refusal{}, fmt.Errorf("%w: refusal: %v", errGarbled, err)
	}
	r.Code, r.Reason = Code(clean(string(r.Code), 32)), clean(r.Reason, maxReason)
	return r, nil
}

// goodbye is why a member leaves.
type goodbye struct {
	Kind   string `json:"kind"`
	Reason string `json:"reason"`
}

func decodeGoodbye(b []byte) (goodbye, error) {
	var g goodbye
	if err := strictJSON(b, &g); err != nil {
		return goodbye{}, fmt.Errorf("%w: goodbye: %v", errGarbled, err)
	}
	g.Kind, g.Reason = clean(g.Kind, 32), clean(g.Reason, maxReason)
	return g, nil
}

// encodeExchange lays out an exchange: the length of the tag in one byte, the tag, the offer.
func encodeExchange(tag string, offer []byte) []byte {
	b := make([]byte, 0, 1+len(tag)+len(offer))
	b = append(b, byte(len(tag)))
	b = append(b, tag...)
	return append(b, offer...)
}

func decodeExchange(b []byte) (tag string, offer []byte, err error) {
	if len(b) == 0 || int(b[0]) == 0 || int(b[0]) > maxTag || 1+int(b[0]) > len(b) {
		return "", nil, fmt.Errorf("%w: exchange without a proper tag", errGarbled)
	}
	n := 1 + int(b[0])
	if tag = string(b[1:n]); !validTag(tag) {
		return "", nil, fmt.Errorf("%w: exchange with tag %q", errGarbled, tag)
	}
	if len(b)-n > maxOffer {
		return "", nil, fmt.Errorf("%w: exchange of %d bytes, at most %d are allowed", errGarbled, len(b)-n, maxOffer)
	}
	return tag, b[n:], nil
}

func validTag(tag string) bool {
	if tag == "" || len(tag) > maxTag {
		return false
	}
	return strings.IndexFunc(tag, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// strictJSON decodes one JSON value that fills b and has no field that v lacks.
func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the value")
	}
	return nil
}

func encodeJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("cluster: " + err.Error()) // our own plain structs always marshal
	}
	return b
}

// clean makes text from a stranger fit for a log line and a terminal: no control characters, bounded length.
func clean(s string, max int) string {
	if len(s) > max {
		s = s[:max]
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
