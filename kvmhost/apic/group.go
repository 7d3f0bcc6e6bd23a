package apic

// Group is the local APICs of one node.
type Group []*LAPIC

// Deliver performs a message that was sent on this node: it posts it to the local APICs that it is for, and
// calls kick with the index of each one that needs it. forward says that other nodes may hold further
// destinations: they get the message rest, and each calls Accept.
//
// A lowest-priority message goes to exactly one local APIC. The manuals leave the choice open where priorities
// are equal, and here all of them are: the first match on this node gets it; without one, the sender
// picks the lowest bit of a logical destination (which only one LAPIC has), or the lowest ID, 0, for a
// broadcast, and sends that on as a fixed message. An operating system names processors that are there,
// so the bit picked has an owner. No allocation.
func (g Group) Deliver(m Message, kick func(i int)) (rest Message, forward bool) {
	if g.Accept(m, kick) && m.single() {
		return Message{}, false
	}
	switch {
	case m.Mode == LowestPriority:
		return g.narrow(m), true
	case m.Shorthand == Self:
		return Message{}, false
	}
	return m, true
}

// Accept performs a message that another node sent on, and reports whether somebody here took it.
func (g Group) Accept(m Message, kick func(i int)) (taken bool) {
	for i, l := range g {
		if !l.Matches(m) {
			continue
		}
		taken = true
		// The sender's own thread is at this very moment outside of the guest, and will Sync.
		if l.post(m) && m.Source != l.ID() {
			kick(i)
		}
		if m.single() {
			break
		}
	}
	return taken
}

// post does what the message asks, on any thread.
func (l *LAPIC) post(m Message) (kick bool) {
	switch m.Mode {
	case Fixed, LowestPriority:
		return l.Post(m.Vector, m.Trigger)
	case NMI:
		return l.PostNMI()
	case INIT:
		return l.PostINIT()
	case Startup:
		return l.PostSIPI(m.Vector)
	}
	return false
}

// single says that at most one local APIC in the whole VM may take the message.
func (m Message) single() bool {
	if m.Mode == LowestPriority || m.Shorthand == Self {
		return true
	}
	return m.Shorthand == NoShorthand && !m.Logical && m.Dest != Broadcast
}

// narrow turns a lowest-priority message into a fixed one for a single destination.
func (g Group) narrow(m Message) Message {
	m.Mode = Fixed
	switch {
	case m.Shorthand != NoShorthand || m.Dest == Broadcast:
		m.Shorthand, m.Logical, m.Dest = NoShorthand, false, 0
	case m.Logical && g.clustered():
		m.Dest = m.Dest&0xf0 | m.Dest&-m.Dest&0xf
	case m.Logical:
		m.Dest &= -m.Dest
	}
	return m
}

// clustered says whether logical destinations are in the cluster model, which an operating system chooses for
// all of its local APICs alike.
func (g Group) clustered() bool {
	return len(g) > 0 && g[0].identity.Load()>>dfrShift&0xf == modelCluster
}
