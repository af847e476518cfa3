//! The cost of a log line to a request: formatting, and the copy into the writer's buffer. `cargo
//! bench --bench log_line`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use logline::LogWriter;
use tracing::{error_span, info};
use user_management_api::testing::{LogFormat, LogLevel, subscriber};

fn a_request_line(criterion: &mut Criterion) {
    let writer = LogWriter::to(std::io::sink()).expect("a thread for the writer");
    for (name, format) in [("json", LogFormat::Json), ("pretty", LogFormat::Pretty)] {
        let subscriber = subscriber(&LogLevel::default(), format, writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            let span = error_span!("request", trace_id = "f47ac10b-58cc-4372-a567-0e02b2c3d479");
            let _entered = span.enter();
            criterion.bench_function(&format!("log line, {name}"), |bencher| {
                bencher.iter(|| {
                    let method = black_box("GET");
                    let path = black_box("/users/12345");
                    info!(
                        method,
                        path,
                        status_code = 200,
                        duration_ms = 0.153,
                        "Request completed"
                    );
                });
            });
        });
    }
    assert_eq!(
        writer.dropped(),
        0,
        "dropped lines cost less than lines that are written"
    );
}

criterion_group!(benches, a_request_line);
criterion_main!(benches);
