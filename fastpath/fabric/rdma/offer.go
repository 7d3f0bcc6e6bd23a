package rdma

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

// offerVersion is the version of the offer and of what travels on the queue pair.
const offerVersion = 4

var offerMagic = [4]byte{'I', 'R', 'd', 'm'}

// region is a piece of memory as an offer names it.
type region struct {
	Addr, Len uint64
	RKey      uint32
}

// offer is what a node tells a peer, in its binary form fixed by encoding/binary: little endian, no padding.
type offer struct {
	Magic         [4]byte
	Version, Lane uint16
	Epoch         uint32
	From, To      uint8
	Nodes         uint8
	MTU           uint8
	QPN, PSN      uint32
	GID           [16]byte
	LID           uint16
	ReadDepth     uint8
	_             uint8
	Depth         uint32 // receives for messages
	Home          fabric.Span
	RAM, Slots    region
}

var offerSize = binary.Size(offer{})

func (l *Lane) checkPeer(peer wire.NodeID) error {
	switch {
	case l.done:
		return fmt.Errorf("rdma: lane %d is closed", l.cfg.Lane)
	case int(peer) >= l.cfg.Nodes || peer == l.cfg.Self:
		return fmt.Errorf("rdma: node %d is no peer of node %d of %d", peer, l.cfg.Self, l.cfg.Nodes)
	}
	return nil
}

// Offer makes the queue pair for peer, with its receives posted, and returns what peer has to know.
func (l *Lane) Offer(peer wire.NodeID) ([]byte, error) {
	if err := l.checkPeer(peer); err != nil {
		return nil, err
	}
	k := &l.links[peer]
	if k.offer != nil {
		return bytes.Clone(k.offer), nil
	}
	if err := l.makeQP(k); err != nil {
		return nil, fmt.Errorf("rdma: lane %d, link to node %d: %w", l.cfg.Lane, peer, err)
	}
	ep := k.qp.Endpoint()
	o := offer{
		Magic: offerMagic, Version: offerVersion, Lane: l.cfg.Lane, Epoch: uint32(l.cfg.Epoch),
		From: uint8(l.cfg.Self), To: uint8(peer), Nodes: uint8(l.cfg.Nodes),
		MTU: uint8(ep.MTU), QPN: ep.QPN, PSN: ep.PSN, GID: ep.GID, LID: ep.LID, ReadDepth: ep.ReadDepth,
		Depth: uint32(l.opt.Depth),
	}
	if l.home != nil {
		o.Home = l.cfg.Homes[l.cfg.Self]
		o.RAM = region{l.home.Addr(), l.home.Len(), l.home.RKey()}
	} else if len(l.cfg.Homes) != 0 {
		o.Home = l.cfg.Homes[l.cfg.Self]
	}
	if l.slots != nil {
		o.Slots = region{l.slots.Addr(), l.slots.Len(), l.slots.RKey()}
	}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, &o); err != nil {
		return nil, fmt.Errorf("rdma: encode offer: %w", err)
	}
	k.offer = b.Bytes()
	return bytes.Clone(k.offer), nil
}

func (l *Lane) makeQP(k *link) error {
	limits, err := l.adapter.dev.Limits()
	if err != nil {
		return err
	}
	cfg := verbs.QPConfig{
		SendCQ: l.out.cq, RecvCQ: l.in.cq, SendWR: l.opt.SendWR, RecvWR: l.opt.Depth + creditRecvs, MaxInline: recvSize,
		SendSGE: min(runPages, limits.MaxSGE),
	}
	qp, err := l.adapter.pd.CreateQP(cfg)
	for err != nil && cfg.MaxInline > wire.Size { // devices do not say what they take inline
		cfg.MaxInline /= 2
		var again error
		if qp, again = l.adapter.pd.CreateQP(cfg); again == nil {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	if err := l.prepare(k, qp); err != nil {
		_ = qp.Close() // the first error tells
		return err
	}
	k.qp, k.batch, k.recvs, k.packetMax = qp, qp.Batch(), qp.RecvBatch(), cfg.MaxInline
	return nil
}

func (l *Lane) prepare(k *link, qp *verbs.QP) error {
	err := qp.Init(verbs.PortConfig{
		Port: l.opt.Port, GID: l.opt.GID, MTU: l.opt.MTU, Retry: l.opt.Retry, TrafficClass: l.opt.TrafficClass,
		Access: verbs.RemoteWrite | verbs.RemoteRead,
	})
	if err != nil {
		return err
	}
	rb := qp.RecvBatch()
	for i := range l.opt.Depth + creditRecvs {
		rb.Add(k.recvID(uint32(i)), l.recvSGE(k, uint32(i)))
	}
	_, err = rb.Post()
	return err
}

func (l *Lane) recvSGE(k *link, buf uint32) verbs.SGE {
	return l.memMR.SGE(k.recvAt+uint64(buf)*recvSize, recvSize)
}

// Connect links this end with the peer whose offer to us this is.
func (l *Lane) Connect(peer wire.NodeID, data []byte) error {
	if err := l.checkPeer(peer); err != nil {
		return err
	}
	k := &l.links[peer]
	if k.state != linkNone {
		return fmt.Errorf("rdma: lane %d, node %d: %w", l.cfg.Lane, peer, fabric.ErrConnected)
	}
	o, err := l.readOffer(peer, data)
	if err != nil {
		return fmt.Errorf("rdma: lane %d, node %d: %w: %w", l.cfg.Lane, peer, fabric.ErrOffer, err)
	}
	if _, err := l.Offer(peer); err != nil { // makes the queue pair if need be
		return err
	}
	ep := o.endpoint()
	if err := k.qp.Connect(ep); err != nil {
		return fmt.Errorf("rdma: lane %d, link to node %d at %s: %w", l.cfg.Lane, peer, ep.GID, err)
	}
	k.ram = remoteRegion{o.Home.First, o.Home.Last, o.RAM.Addr, o.RAM.RKey}
	k.slots = remoteRegion{0, o.Slots.Len, o.Slots.Addr, o.Slots.RKey}
	k.credits, k.most = int(o.Depth), int(o.Depth)
	k.state = linkUp
	return nil
}

func (o *offer) endpoint() verbs.QPEndpoint {
	return verbs.QPEndpoint{
		QPN: o.QPN, PSN: o.PSN, LID: o.LID, GID: verbs.GID(o.GID), MTU: verbs.MTU(o.MTU), ReadDepth: o.ReadDepth,
	}
}

// readOffer decodes a peer's offer and compares everything in it with what this node knows of the VM.
func (l *Lane) readOffer(peer wire.NodeID, data []byte) (*offer, error) {
	if len(data) != offerSize {
		return nil, fmt.Errorf("it has %d bytes, want %d", len(data), offerSize)
	}
	var o offer
	if err := binary.Read(bytes.NewReader(data), binary.LittleEndian, &o); err != nil {
		return nil, err
	}
	var home fabric.Span
	if len(l.cfg.Homes) != 0 {
		home = l.cfg.Homes[peer]
	}
	switch {
	case o.Magic != offerMagic:
		return nil, fmt.Errorf("it is not one of the rdma fabric")
	case o.Version != offerVersion:
		return nil, fmt.Errorf("version %d, want %d: all nodes must run the same ironspan", o.Version, offerVersion)
	case o.Epoch != uint32(l.cfg.Epoch):
		return nil, fmt.Errorf("epoch %d, want %d", o.Epoch, l.cfg.Epoch)
	case o.Lane != l.cfg.Lane:
		return nil, fmt.Errorf("it is for lane %d", o.Lane)
	case o.From != uint8(peer) || o.To != uint8(l.cfg.Self):
		return nil, fmt.Errorf("it is from node %d to node %d", o.From, o.To)
	case int(o.Nodes) != l.cfg.Nodes:
		return nil, fmt.Errorf("it is for a vm of %d nodes, want %d", o.Nodes, l.cfg.Nodes)
	case o.Depth < minDepth || o.Depth > maxDepth:
		return nil, fmt.Errorf("%d receives are not within %d to %d", o.Depth, minDepth, maxDepth)
	case o.Home != home:
		return nil, fmt.Errorf("home range %#x-%#x, want %#x-%#x", o.Home.First, o.Home.Last, home.First, home.Last)
	case o.Slots.Len != l.cfg.Slots.Len:
		return nil, fmt.Errorf("%#x bytes of slots, want %#x", o.Slots.Len, l.cfg.Slots.Len)
	}
	if err := o.RAM.check("home frames", home.Last-home.First); err != nil {
		return nil, err
	}
	if err := o.Slots.check("slots", l.cfg.Slots.Len); err != nil {
		return nil, err
	}
	ep := o.endpoint()
	if err := ep.Validate(); err != nil {
		return nil, err
	}
	return &o, nil
}

// check refuses a region that is not want bytes of page-aligned user memory.
func (r *region) check(what string, want uint64) error {
	const userEnd = 1 << 57 // of 5-level page tables
	switch {
	case r.Len != want:
		return fmt.Errorf("%#x bytes of %s, want %#x", r.Len, what, want)
	case r.Len == 0:
		if *r != (region{}) {
			return fmt.Errorf("an address for %s of no length", what)
		}
	case r.Addr == 0 || r.Addr%wire.PageSize != 0 || r.Addr >= userEnd || r.Len > userEnd-r.Addr:
		return fmt.Errorf("%s at %#x, which is no page-aligned user memory", what, r.Addr)
	}
	return nil
}
