package micro

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"ironspan/fastpath/fabric/rdma"
)

// Leader runs trials on nodes of several servers, over verbs. It is server 0 itself; the others run Serve.
type Leader struct {
	peers []*peer
	err   error // a peer is in an unknown state: no more trials
}

// peer is one server that serves.
type peer struct {
	link    *link
	answers chan message // to what was asked
	events  chan message // came and done
	vcpus   int          // in this trial
}

// Lead calls the servers at the addresses.
func Lead(ctx context.Context, addrs []string, token, scale string) (_ *Leader, err error) {
	l := &Leader{}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	var dialer net.Dialer
	for i, addr := range addrs {
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("micro: server %d: %w", i+1, err)
		}
		p := &peer{link: newLink(conn), answers: make(chan message, 1), events: make(chan message, 2)}
		l.peers = append(l.peers, p)
		go p.read()
		hello := message{Op: opHello, Token: token, Scale: scale, Server: i + 1, Servers: len(addrs) + 1}
		if _, err := p.ask(ctx, hello); err != nil {
			return nil, fmt.Errorf("micro: server %d: %w", i+1, err)
		}
	}
	return l, nil
}

// Close ends the connections, and with them what serves.
func (l *Leader) Close() {
	for _, p := range l.peers {
		p.link.conn.Close()
	}
}

// Fabric implements Runner.
func (l *Leader) Fabric() string { return "verbs" }

// read takes in what the peer says. At the end there is nothing more to come.
func (p *peer) read() {
	defer close(p.answers)
	defer close(p.events)
	for {
		m, err := p.link.receive()
		if err != nil {
			return
		}
		to := p.answers
		if m.Op == opCame || m.Op == opDone {
			to = p.events
		}
		select {
		case to <- m:
		default: // more than can be: it is not to be trusted
			p.link.conn.Close()
			return
		}
	}
}

// ask asks and waits for the answer.
func (p *peer) ask(ctx context.Context, m message) (message, error) {
	if err := p.link.send(m); err != nil {
		return message{}, err
	}
	select {
	case answer, alive := <-p.answers:
		switch {
		case !alive:
			return answer, errLeft
		case answer.Op == opFailed:
			return answer, errors.New(answer.Error)
		case answer.Op != opOK:
			return answer, fmt.Errorf("micro: the answer to %s is %q", m.Op, answer.Op)
		}
		return answer, nil
	case <-ctx.Done():
		return message{}, context.Cause(ctx)
	}
}

// all asks all peers at once, while this server does its own part.
func (l *Leader) all(ctx context.Context, m message, own func() error, took func(p *peer, answer message)) error {
	errs := make([]error, len(l.peers))
	answers := make([]message, len(l.peers))
	var asked sync.WaitGroup
	for i, p := range l.peers {
		asked.Go(func() { answers[i], errs[i] = p.ask(ctx, m) })
	}
	errs = append(errs, own())
	asked.Wait()
	for i, p := range l.peers {
		if errs[i] != nil {
			errs[i] = fmt.Errorf("server %d: %s: %w", i+1, m.Op, errs[i])
		} else if took != nil {
			took(p, answers[i])
		}
	}
	return errors.Join(errs...)
}

// remotePatience is how long a trial between servers may take, and its end by itself.
const (
	remotePatience = 3 * time.Minute
	endPatience    = 30 * time.Second
)

// Run implements Runner.
func (l *Leader) Run(ctx context.Context, b *Bench) (_ *Outcome, err error) {
	if l.err != nil {
		return nil, fmt.Errorf("micro: after a failure: %w", l.err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, remotePatience, fmt.Errorf("micro: %s: its guests had %v", b.Name, remotePatience))
	defer cancel()
	t := &leading{Leader: l, offers: map[int]map[int][][]byte{}}
	defer func() { err = errors.Join(err, t.end()) }()
	if err := t.build(ctx, b); err != nil {
		return nil, err
	}
	if err := l.all(ctx, message{Op: opConnect, Offers: t.offers}, func() error { return t.share.connect(t.offers) }, nil); err != nil {
		return nil, err
	}
	if err := l.all(ctx, message{Op: opStart}, t.share.start, nil); err != nil {
		return nil, err
	}
	return t.run(ctx)
}

// leading is one trial, as the leader has it.
type leading struct {
	*Leader
	share  *share
	offers map[int]map[int][][]byte // of all nodes
	came   chan struct{}            // all vCPUs of this server have come to the meeting
	built  bool                     // everywhere
}

func (t *leading) build(ctx context.Context, b *Bench) error {
	take := func(offers map[int]map[int][][]byte) {
		for node, o := range offers {
			t.offers[node] = o
		}
	}
	err := t.all(ctx, message{Op: opBuild, Bench: b.Name}, func() (err error) {
		t.share, err = newShare(b.Trial(), 0, len(t.peers)+1, &rdma.Options{})
		return err
	}, func(p *peer, answer message) {
		p.vcpus = answer.VCPUs
		take(answer.Offers)
	})
	if err != nil {
		return err
	}
	t.built = true
	own, err := t.share.offers()
	if err != nil {
		return err
	}
	take(own)
	t.came = make(chan struct{}, 1)
	t.share.gate.full = func() { t.came <- struct{}{} }
	return nil
}

// run runs the guests, has them meet, and gathers what they measured.
func (t *leading) run(ctx context.Context) (*Outcome, error) {
	if err := t.all(ctx, message{Op: opRun}, func() error { t.share.run(); return nil }, nil); err != nil {
		return nil, err
	}
	var own error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		own = t.share.wait(ctx)
	}()
	outcomes, err := t.meetings(ctx, ended, &own)
	if err != nil {
		t.share.fail(err)
		<-ended
		return nil, err
	}
	o, err := t.share.collect()
	if err != nil {
		return nil, err
	}
	for _, from := range outcomes {
		if err := o.merge(from); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// meetings goes on until all guests have ended. own is the error of those here, once ended is closed.
func (t *leading) meetings(ctx context.Context, ended <-chan struct{}, own *error) (outcomes []*Outcome, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer cancel()
	events := t.events(ctx, &listening)
	parties, here, left := 0, 0, 1+len(t.peers)
	if t.share.vcpus > 0 {
		parties++
	}
	for _, p := range t.peers {
		if p.vcpus > 0 {
			parties++
		}
	}
	for meeting := 0; left > 0; {
		select {
		case <-t.came:
			here++
		case <-ended:
			if *own != nil {
				return nil, *own
			}
			left--
			ended = nil
		case e := <-events:
			switch {
			case e.err != nil:
				err = e.err
			case e.Op == opCame:
				here++
			case e.Error != "":
				err = errors.New(e.Error)
			case e.Outcome == nil:
				err = errors.New("micro: a server has no outcome")
			default:
				left--
				outcomes = append(outcomes, e.Outcome)
			}
			if err != nil {
				return nil, err
			}
		}
		if here == parties && parties > 0 {
			here = 0
			t.share.met(meeting)
			meeting++
			if err := t.letGo(); err != nil {
				return nil, err
			}
		}
	}
	return outcomes, nil
}

// letGo ends a meeting everywhere.
func (t *leading) letGo() error {
	for _, p := range t.peers {
		if p.vcpus > 0 {
			if err := p.link.send(message{Op: opGo}); err != nil {
				return err
			}
		}
	}
	t.share.gate.open()
	return nil
}

// event is what a peer says, or that it says nothing more.
type event struct {
	message
	err error
}

// events are those of all peers.
func (t *leading) events(ctx context.Context, listening *sync.WaitGroup) <-chan event {
	out := make(chan event)
	for i, p := range t.peers {
		listening.Go(func() {
			for {
				var e event
				select {
				case m, alive := <-p.events:
					e.message = m
					if !alive {
						e.err = fmt.Errorf("server %d: %w", i+1, errLeft)
					}
				case <-ctx.Done():
					return
				}
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
				if e.err != nil || e.Op == opDone {
					return
				}
			}
		})
	}
	return out
}

// end stops all nodes, and closes them when all have stopped. Peers that cannot be asked are lost.
func (t *leading) end() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), endPatience, errors.New("micro: a server does not end its part"))
	defer cancel()
	own := func(f func(*share) error) func() error {
		return func() error {
			if t.share == nil {
				return nil
			}
			return f(t.share)
		}
	}
	err := t.all(ctx, message{Op: opStop}, own((*share).stop), nil)
	// A peer has said what there was to say before it stopped.
	for _, p := range t.peers {
		for len(p.events) > 0 {
			<-p.events
		}
	}
	err = errors.Join(err, t.all(ctx, message{Op: opClose}, own((*share).close), nil))
	if !t.built {
		return nil // who could not build has nothing to stop, and says so
	}
	t.Leader.err = err
	return err
}
