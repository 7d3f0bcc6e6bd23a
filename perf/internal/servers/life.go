package servers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
)

// Up brings up a lab with so many servers; words are further flags of `lab up`. What the lab says of its progress goes to
// progress. After an error there is no lab.
func (l Lab) Up(ctx context.Context, servers int, progress io.Writer, words ...string) error {
	cmd := l.command(ctx, append([]string{"up", "--servers", strconv.Itoa(servers)}, words...)...)
	var complaint bytes.Buffer
	cmd.Stderr = io.MultiWriter(&complaint, progress)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("servers: lab up: %w", failure(err, complaint.String()))
	}
	return nil
}

// Down ends the lab.
func (l Lab) Down(ctx context.Context) error {
	if _, err := l.output(ctx, "down"); err != nil {
		return fmt.Errorf("servers: lab down: %w; bin/lab --name %s down ends what is left", err, l.Name)
	}
	return nil
}

// Watch runs a command of this program's own in a server and returns what it prints. What it says on standard error goes
// to progress as well.
func (l Lab) Watch(ctx context.Context, progress io.Writer, server int, words ...string) ([]byte, error) {
	cmd := l.command(ctx, append([]string{"exec", strconv.Itoa(server), "--"}, l.inside(words)...)...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, io.MultiWriter(&complaint, progress)
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("servers: server %d: %s: %w", server, words[0], failure(err, complaint.String()))
	}
	return out.Bytes(), nil
}
